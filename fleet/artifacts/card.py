"""``[card]`` in ``muster.toml``: what people say of a model for its bill of materials. All of it may be left out."""

import re
from dataclasses import dataclass
from typing import Final

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from fleet.artifacts.errors import ProjectError
from fleet.artifacts.table import Table, is_number

__all__ = ["BOM_NAME", "Card", "Dataset", "Metric", "read_card"]

BOM_NAME: Final = "bom.cdx.json"
"""The bill of materials that a card becomes, see ``fleet.artifacts.bom``."""
APPROACHES: Final = (
    "supervised", "unsupervised", "reinforcement-learning", "semi-supervised", "self-supervised",
)  # fmt: skip
MAX_CHARS: Final = 2000
_URL: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]{0,31}:(?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){1,1000}"
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Metric:
    """``[[card.metric]]``: a measured property, of a part of the data where ``slice`` says one."""

    type: str
    value: str
    slice: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """``[[card.dataset]]``: data the model was made with. ``sha256`` of it, empty where unknown."""

    name: str
    url: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """``license``: an SPDX expression in its canonical form. Empty text: not said."""

    description: str = ""
    license: str = ""
    task: str = ""
    approach: str = ""
    architecture: str = ""
    limitations: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    datasets: tuple[Dataset, ...] = ()


_KEYS: Final = (
    "description", "license", "task", "approach", "architecture", "limitations", "metric", "dataset",
)  # fmt: skip


def read_card(top: Table) -> Card:
    """Read the table ``[card]``, empty where there is none.

    Raises:
        ProjectError: it breaks a rule; the message names the key and what to do.
    """
    table = top.table("card", _KEYS)
    approach = table.text("approach", "")
    if approach and approach not in APPROACHES:
        raise table.refuse("approach", f"one of {', '.join(APPROACHES)}")
    return Card(
        description=_short(table, "description"),
        license=_license(table),
        task=_short(table, "task"),
        approach=approach,
        architecture=_short(table, "architecture"),
        limitations=table.texts("limitations"),
        metrics=tuple(_metric(one) for one in table.tables("metric", ("type", "value", "slice"))),
        datasets=tuple(_dataset(one) for one in table.tables("dataset", ("name", "url", "sha256"))),
    )


def _license(table: Table) -> str:
    text = table.text("license", "")
    if not text:
        return ""
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression as error:
        raise ProjectError(
            f"{table.where} license = {text!r:.60} is no SPDX expression ({error}); write it like 'Apache-2.0' or "
            "'LicenseRef-ours'"
        ) from error


def _metric(table: Table) -> Metric:
    value = table.get("value")
    if not is_number(value) and not isinstance(value, str):
        raise table.refuse("value", "a number or text")
    said = value if isinstance(value, str) else format(value, ".12g")
    return Metric(_short(table, "type", None), said, _short(table, "slice"))


def _dataset(table: Table) -> Dataset:
    url = table.text("url", "", like=None)
    if url and not _URL.fullmatch(url):
        raise table.refuse("url", "an address such as https://example.org/data")
    sha256 = table.text("sha256", "")
    if sha256 and not _SHA256.fullmatch(sha256):
        raise table.refuse("sha256", "64 digits of lower-case hex")
    return Dataset(_short(table, "name", None), url, sha256)


def _short(table: Table, key: str, default: str | None = "") -> str:
    text = table.text(key, default)
    if len(text) > MAX_CHARS or (default is None and not text):
        raise table.refuse(key, f"text of 1 to {MAX_CHARS} characters")
    return text
