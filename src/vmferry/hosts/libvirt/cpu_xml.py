"""Reads and rewrites libvirt's <cpu>, and keeps the one that a VM had before it was limited."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from lxml import etree

from vmferry.errors import BadCpuXml, BadXml
from vmferry.hosts.libvirt import domain_xml
from vmferry.hosts.libvirt.domain_xml import Element

NAMESPACE = "urn:vmferry:cpu:1"
"""XML namespace of vmferry's element in a definition's <metadata>: what a limited VM's <cpu> was before."""
_LIMIT = f"{{{NAMESPACE}}}limit"
_LAYOUT = ("topology", "numa")
"""Parts of a <cpu> that say how the CPUs are laid out, and not what they can: a limit leaves them as they are."""
_SIZES = ("cache", "maxphysaddr")
"""Parts that a limit leaves too, but for mode='passthrough', the host's own: libvirt refuses it for a named model."""
_REMOVED = ("disable", "forbid", "optional")


@dataclass(frozen=True)
class Named:
    """A <cpu> as it is written, its model not expanded."""

    mode: str
    model: str
    vendor: str
    required: tuple[str, ...]
    removed: tuple[str, ...]
    """Not asked of the host: disabled, forbidden, optional or forced."""
    forbidden: tuple[str, ...]
    lenient: bool


def parse(xml: str) -> Element:
    """Parse a <cpu> element that comes from outside. Raises BadCpuXml."""
    try:
        root = domain_xml.parse(xml)
    except BadXml as error:
        raise BadCpuXml(reason=error.fields["reason"]) from error
    if root.tag != "cpu":
        raise BadCpuXml(reason=f"it is a <{root.tag}>")
    return root


def read(cpu: Element) -> Named:
    by_policy: dict[str, list[str]] = {}
    for feature in cpu.iterfind("feature"):
        by_policy.setdefault(feature.get("policy", "require"), []).append(feature.get("name", ""))
    model = cpu.findtext("model", "").strip()
    return Named(
        mode=cpu.get("mode") or "custom",
        model=model,
        vendor=cpu.findtext("vendor", "").strip(),
        required=tuple(by_policy.get("require", ())),
        removed=tuple(name for policy in (*_REMOVED, "force") for name in by_policy.get(policy, ())),
        forbidden=tuple(by_policy.get("forbid", ())),
        lenient=cpu.get("check", "none") == "none" or cpu.get("match") == "minimum",
    )


def build(model: str, require: Sequence[str] = (), disable: Sequence[str] = ()) -> str:
    """Return the <cpu> of this model with the features in `require` and without those in `disable`."""
    cpu = etree.Element("cpu", mode="custom", match="exact", check="partial")
    etree.SubElement(cpu, "model", fallback="forbid").text = model
    for policy, names in (("require", require), ("disable", disable)):
        for name in names:
            etree.SubElement(cpu, "feature", policy=policy, name=name)
    return domain_xml.text(cpu)


def host_model(mode: Element) -> str:
    """Return the <mode name='host-model'> of domain capabilities as a <cpu> that a guest could be given."""
    cpu = etree.Element("cpu", mode="custom", match="exact")
    cpu.extend([deepcopy(child) for child in mode if child.tag in ("model", "vendor", "feature")])
    return domain_xml.text(cpu)


def as_host(named: Named) -> str:
    """Return the model as the <cpu> of a host, which virConnectBaselineCPU expands."""
    cpu = etree.Element("cpu")
    etree.SubElement(cpu, "arch").text = "x86_64"
    etree.SubElement(cpu, "model").text = named.model
    return domain_xml.text(cpu)


def limited_to(domain: Element) -> str:
    limit = domain.find(f"metadata/{_LIMIT}")
    return "" if limit is None else limit.get("to", "")


def limit(domain: Element, xml: str, to: str) -> None:
    """Give the definition this CPU, its layout as it is; the first CPU that was limited is the one that is kept."""
    now, new = domain.find("cpu"), parse(xml)
    if not limited_to(domain):
        _keep(domain, now)
    found = domain.find(f"metadata/{_LIMIT}")
    assert found is not None
    found.set("to", to)
    new.set("check", "partial")  # libvirt's own default, but for emulated guests, where it would be none
    for child in [child for child in new if child.tag in (*_LAYOUT, *_SIZES)]:
        new.remove(child)
    if now is not None:
        new.extend([deepcopy(child) for child in now if child.tag in (*_LAYOUT, *_SIZES) and _own(child)])
    _place(domain, now, new)


def unlimit(domain: Element) -> bool:
    """Give the definition back the CPU that it had, its layout as it is now; False if it is not limited."""
    limit = domain.find(f"metadata/{_LIMIT}")
    if limit is None:
        return False
    now, kept = domain.find("cpu"), limit.find("cpu")
    if kept is not None and now is not None:
        for tag in (*_LAYOUT, *_SIZES):
            _take_over(tag, now, kept)
    _place(domain, now, kept)
    metadata = limit.getparent()
    assert metadata is not None
    metadata.remove(limit)
    if len(metadata) == 0:
        domain.remove(metadata)
    return True


def _own(child: Element) -> bool:
    return not (child.tag in _SIZES and child.get("mode") == "passthrough")


def _keep(domain: Element, cpu: Element | None) -> None:
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = etree.SubElement(domain, "metadata")
    limit: Element = etree.SubElement(metadata, _LIMIT, nsmap={"vmferry": NAMESPACE})
    if cpu is not None:
        limit.append(deepcopy(cpu))


def _take_over(tag: str, now: Element, kept: Element) -> None:
    """Bring one part of the kept CPU's layout to what it is now; what a limit had to leave out comes back."""
    present = now.find(tag)
    if present is None and tag in _SIZES:
        return
    old = kept.find(tag)
    if old is not None and present is not None:
        kept.replace(old, deepcopy(present))
    elif old is not None:
        kept.remove(old)
    elif present is not None:
        kept.append(deepcopy(present))


def _place(domain: Element, now: Element | None, new: Element | None) -> None:
    if now is not None:
        domain.remove(now)
    if new is not None:
        domain.append(new)
