"""What can be wrong with a bundle: the publisher's fault or an attacker's, never the device's."""

from agent.errors import BundleError

__all__ = ["BundleFileError", "ManifestError"]


class ManifestError(BundleError):
    """``manifest.json`` breaks a rule; the message names the field, its value and the rule."""


class BundleFileError(BundleError):
    """A file is missing, extra, of the wrong kind or not the bytes the manifest says."""
