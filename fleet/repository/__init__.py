"""What the fleet manager signs: roles, keys, publishing. Devices read it with
:mod:`agent.trust`."""

from fleet.repository.create import init_repository, metadata_folder
from fleet.repository.keys import key_path
from fleet.repository.release import ReleaseEntry, renew_release, sign_release
from fleet.repository.repository import Repository

__all__ = [
    "ReleaseEntry",
    "Repository",
    "init_repository",
    "key_path",
    "metadata_folder",
    "renew_release",
    "sign_release",
]
