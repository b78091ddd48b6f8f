"""Whether a version is among those that a release asks for. What cannot be understood does not
fit."""

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

__all__ = ["version_fits"]


def version_fits(version: str, specifier: str) -> bool:
    """Whether a version is within a PEP 440 specifier; what cannot be understood does not fit."""
    if not specifier:
        return True
    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return False  # fail closed: neither a guess at the version nor at the demand is safe
