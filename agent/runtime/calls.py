"""Which system calls a child that runs models may not make. Values only; ``agent.runtime.seccomp`` makes the filter.

Rules kept here:

- What is listed is refused with EPERM: new processes and programs, the network, other processes, kernel interfaces
  that have nothing to do with a model, and the calls that Landlock does not see (modes, owners, times, ``truncate``).
- What is not listed is allowed, up to the last call that was looked at; every later one answers ENOSYS, as on an older
  kernel. So a new C library or onnxruntime does not make a good bundle fail, and a new kernel opens nothing.
- A call of which a child needs one use only is narrowed by its arguments, never by what a pointer points to: that can
  change after it was looked at.

Numbers are those of the kernel's ABI for x86_64 and aarch64, kept for ever by its rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["LAST_KNOWN", "NUMBERS", "Check", "refused_to_server", "refused_to_trial"]

LAST_KNOWN: Final = 462
"""``mseal`` of Linux 6.10: the last call whose use was weighed here."""

_ALL_BITS: Final = 0xFFFFFFFF
_CLONE_THREAD: Final = 0x00010000
_SHARED_ANONYMOUS: Final = 0x21
_MSG_FASTOPEN: Final = 0x20000000
_SETS_OWNER_OR_SIGNAL: Final = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_STREAM: Final = 1
_KIND_BITS: Final = 0xF


@dataclass(frozen=True, slots=True)
class Check:
    """Look at the low 32 bits of argument ``index``, masked. One of ``values``: allowed, or refused when ``refuses``;
    anything else the other way round."""

    index: int
    values: tuple[int, ...]
    mask: int = _ALL_BITS
    refuses: bool = False


Refused = Mapping[str, tuple[Check, ...]]
"""Name of a call -> its checks, each of which may refuse it; none: it is always refused."""

# name: (x86_64, aarch64); None where the machine has no such call
NUMBERS: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "mmap": (9, 222), "fcntl": (72, 25), "clone": (56, 220), "clone3": (435, 435),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "move_pages": (279, 239), "migrate_pages": (256, 238),
    "prlimit64": (302, 261), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "move_mount": (429, 429), "open_tree": (428, 428), "mount_setattr": (442, 442),
    "statmount": (457, 457), "listmount": (458, 458), "unshare": (272, 97), "setns": (308, 268),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "vhangup": (153, 58),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "lookup_dcookie": (212, 18),
    "mknod": (133, None), "mknodat": (259, 33), "truncate": (76, 45),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92),
}  # fmt: skip

_NETWORK: Final = ("socket", "socketpair", "connect", "bind", "listen", "accept", "accept4")
_MEMORY_OUTSIDE_LIMITS: Final = ("memfd_create", "memfd_secret", "shmget", "shmat")
_NARROWED: Final = (
    "mmap", "fcntl", "clone", "clone3", "sendto", "sendmsg", "sendmmsg", "kill", "tgkill", "prlimit64",
    "sched_setaffinity", "setpriority",
)  # fmt: skip
"""``clone3`` hides its flags behind a pointer: it answers ENOSYS, and the C library takes ``clone``."""


def _refused_to_both(pid: int) -> dict[str, tuple[Check, ...]]:
    whole = set(NUMBERS) - set(_NARROWED) - set(_NETWORK) - set(_MEMORY_OUTSIDE_LIMITS)
    return {
        **dict.fromkeys(whole, ()),
        "clone": (Check(0, (_CLONE_THREAD,), _CLONE_THREAD),),
        "kill": (Check(0, (pid,)),),
        "tgkill": (Check(0, (pid,)),),
        "prlimit64": (Check(0, (0, pid)),),
        "setpriority": (Check(0, (0,)), Check(1, (0,))),
        "sched_setaffinity": (Check(0, (0, pid)),),
        "fcntl": (Check(1, _SETS_OWNER_OR_SIGNAL, refuses=True),),
    }


def refused_to_trial(pid: int) -> Refused:
    """What a trial (process ``pid``) may not call: it needs files and memory, and no more memory than is counted."""
    return {
        **_refused_to_both(pid),
        **dict.fromkeys((*_NETWORK, *_MEMORY_OUTSIDE_LIMITS), ()),
        "sendto": (),
        "sendmsg": (),
        "sendmmsg": (),
        "mmap": (Check(3, (_SHARED_ANONYMOUS,), _SHARED_ANONYMOUS, refuses=True),),
    }


def refused_to_server(pid: int) -> Refused:
    """What the model server (process ``pid``) may not call: it answers who comes, over streams, and calls nobody."""
    no_fast_open = (_MSG_FASTOPEN,)
    return {
        **_refused_to_both(pid),
        "connect": (),
        "socket": (Check(0, (1, 2, 10)), Check(1, (_STREAM,), _KIND_BITS)),
        "sendto": (Check(3, no_fast_open, _MSG_FASTOPEN, refuses=True),),
        "sendmsg": (Check(2, no_fast_open, _MSG_FASTOPEN, refuses=True),),
        "sendmmsg": (Check(3, no_fast_open, _MSG_FASTOPEN, refuses=True),),
    }
