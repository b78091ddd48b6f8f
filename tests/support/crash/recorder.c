/* Preloaded into a child: writes down what it does to the files of one folder, and can make the N-th call fail.
 *
 * One line an operation, inodes as names, because a name may move while a file is open:
 *   B dir                      recording begins; the folder itself
 *   C dir ino name             a file is made          M dir ino name    a folder is made
 *   W ino offset hex           bytes are written       T ino size        a file is cut or grown
 *   S ino                      a file or a folder is synced
 *   R dir name dir name        a name moves            U dir name        a name goes
 *   N text                     what the child says of itself
 * Calls go to the kernel directly, so nothing here depends on the libc that is interposed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST_FDS 4096

static char root[PATH_MAX];
static size_t root_len;
static int log_fd = -1;
static unsigned long kept[MOST_FDS]; /* inode of each open file in the folder */
static long calls, fail_at, fail_errno, sticky;

static void put(const char *text, size_t size) {
    while (size > 0) {
        long done = syscall(SYS_write, log_fd, text, size);
        if (done <= 0) _exit(97);
        text += done, size -= (size_t)done;
    }
}

static void say(const char *form, ...) {
    char line[PATH_MAX * 2];
    va_list rest;
    if (log_fd < 0) return;
    va_start(rest, form);
    int size = vsnprintf(line, sizeof line, form, rest);
    va_end(rest);
    put(line, (size_t)size);
}

static int fails(void) {
    if (fail_at == 0) { calls++; return 0; }
    calls++;
    if (calls == fail_at || (sticky && calls > fail_at)) { errno = (int)fail_errno; return 1; }
    return 0;
}

static int resolve(int dirfd, const char *path, char *full) {
    char base[PATH_MAX];
    if (root_len == 0) return 0;
    if (path[0] == '/') snprintf(full, PATH_MAX, "%s", path);
    else {
        if (dirfd == AT_FDCWD) { if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0; }
        else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
            long size = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
            if (size < 0) return 0;
            base[size] = 0;
        }
        if (snprintf(full, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return strncmp(full, root, root_len) == 0 && full[root_len] == '/';
}

static unsigned long inode(const char *path) {
    struct stat found;
    return stat(path, &found) == 0 ? (unsigned long)found.st_ino : 0;
}

static unsigned long parent(const char *full, const char **name) {
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", full);
    char *slash = strrchr(folder, '/');
    *name = full + (slash - folder) + 1;
    *slash = 0;
    return inode(folder);
}

void recorder_begin(const char *folder, const char *log) {
    snprintf(root, sizeof root, "%s", folder);
    root_len = strlen(root);
    if (log != NULL) log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    say("B %lu\n", inode(root));
}
void recorder_note(const char *text) { say("N %s\n", text); }
void recorder_fail(long at, int error, int stays) { calls = 0; fail_at = at; fail_errno = error; sticky = stays; }
long recorder_calls(void) { return calls; }

static int open_at(int dirfd, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    const char *name;
    int ours = resolve(dirfd, path, full), made = 0;
    if (ours && (flags & O_CREAT)) made = syscall(SYS_faccessat, AT_FDCWD, full, F_OK) != 0;
    if (ours && (made || (flags & O_TRUNC)) && fails()) return -1;
    int fd = (int)syscall(SYS_openat, dirfd, path, flags, mode);
    if (fd < 0 || fd >= MOST_FDS) return fd;
    kept[fd] = 0;
    if (ours || (root_len && path[0] == '/' && strcmp(path, root) == 0)) {
        struct stat found;
        fstat(fd, &found);
        kept[fd] = (unsigned long)found.st_ino;
        if (made) { unsigned long dir = parent(full, &name); say("C %lu %lu %s\n", dir, kept[fd], name); }
        else if (ours && (flags & O_TRUNC)) say("T %lu 0\n", kept[fd]);
    }
    return fd;
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = (mode_t)va_arg(rest, int); va_end(rest); }
int open(const char *path, int flags, ...) { MODE_OF(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE_OF(flags) return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE_OF(flags) return open_at(dir, path, flags, mode); }
int close(int fd) {
    if (fd >= 0 && fd < MOST_FDS) kept[fd] = 0;
    return (int)syscall(SYS_close, fd);
}

static unsigned long ours(int fd) { return fd >= 0 && fd < MOST_FDS ? kept[fd] : 0; }

static void say_written(unsigned long ino, long at, const unsigned char *data, long size) {
    static const char digits[] = "0123456789abcdef";
    if (log_fd < 0) return;
    char *hex = malloc((size_t)size * 2 + 1);
    for (long i = 0; i < size; i++) hex[2 * i] = digits[data[i] >> 4], hex[2 * i + 1] = digits[data[i] & 15];
    hex[size * 2] = '\n';
    say("W %lu %ld ", ino, at);
    put(hex, (size_t)size * 2 + 1);
    free(hex);
}
ssize_t write(int fd, const void *data, size_t size) {
    unsigned long ino = ours(fd);
    if (ino && fails()) return -1;
    long done = syscall(SYS_write, fd, data, size);
    if (ino && done > 0) say_written(ino, syscall(SYS_lseek, fd, 0, SEEK_CUR) - done, data, done);
    return done;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    unsigned long ino = ours(fd);
    if (ino && fails()) return -1;
    long done = syscall(SYS_pwrite64, fd, data, size, at);
    if (ino && done > 0) say_written(ino, at, data, done);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }
int ftruncate64(int fd, off64_t size) {
    unsigned long ino = ours(fd);
    if (ino && fails()) return -1;
    int done = (int)syscall(SYS_ftruncate, fd, size);
    if (ino && done == 0) say("T %lu %ld\n", ino, (long)size);
    return done;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int sync_fd(int fd, long number) {
    unsigned long ino = ours(fd);
    if (ino && fails()) return -1;
    int done = (int)syscall(number, fd);
    if (ino && done == 0) say("S %lu\n", ino);
    return done;
}
int fsync(int fd) { return sync_fd(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    char one[PATH_MAX], other[PATH_MAX];
    const char *first, *second;
    int seen = resolve(from_dir, from, one) & resolve(to_dir, to, other);
    if (seen && fails()) return -1;
    int done = (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, 0);
    if (seen && done == 0) {
        unsigned long a = parent(one, &first), b = parent(other, &second);
        say("R %lu %s %lu %s\n", a, first, b, second);
    }
    return done;
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }
int unlinkat(int dir, const char *path, int flags) {
    char full[PATH_MAX];
    const char *name;
    int seen = resolve(dir, path, full);
    if (seen && syscall(SYS_faccessat, AT_FDCWD, full, F_OK) == 0 && fails()) return -1;
    int done = (int)syscall(SYS_unlinkat, dir, path, flags);
    if (seen && done == 0) { unsigned long where = parent(full, &name); say("U %lu %s\n", where, name); }
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdirat(int dir, const char *path, mode_t mode) {
    char full[PATH_MAX];
    const char *name;
    int seen = resolve(dir, path, full);
    if (seen && fails()) return -1;
    int done = (int)syscall(SYS_mkdirat, dir, path, mode);
    if (seen && done == 0) { unsigned long where = parent(full, &name); say("M %lu %lu %s\n", where, inode(full), name); }
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
