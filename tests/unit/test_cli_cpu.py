"""vmferry cpu through the real command, on a toy host."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.simulated_site import HOST, NAME, UUID, Site

from vmferry.hosts.simulator.cpu_models import EPYC

pytestmark = pytest.mark.slow


def test_a_host_that_can_run_the_vm_ends_the_check_with_0(site: Site) -> None:
    assert "can run büro [x] as it runs now" in site.run("cpu", "check", NAME, HOST).stdout
    assert site.json("cpu", "check", NAME, HOST)["missing"] == []


def test_a_host_that_cannot_ends_it_with_3_and_every_missing_feature(site: Site) -> None:
    with site.world_file.here() as world:
        processor = world.machines[UUID].processor
        processor.live = "<cpu mode='custom'><model>qemu64</model><feature name='avx512f'/></cpu>"
    ended = site.run("cpu", "check", NAME, HOST, code=3)
    assert "cannot run büro [x]" in ended.stdout
    assert "avx512f" in ended.stdout
    assert "cure: `vmferry cpu limit 'büro [x]' --to baseline --host memory`" in ended.stdout
    assert site.json("cpu", "check", NAME, HOST, code=3)["missing"] == ["avx512f", "svm"]


def test_a_baseline_can_be_kept_in_a_file_and_given_to_a_vm(site: Site, tmp_path: Path) -> None:
    assert site.json("cpu", "baseline", HOST, HOST)["cpu"]["features"] == sorted(EPYC)
    file = tmp_path / "cpu.xml"
    file.write_text(site.run("cpu", "baseline", HOST, "--xml").stdout)
    said = site.run("cpu", "limit", NAME, "--to", str(file)).stdout
    assert "is limited to cpu.xml" in said
    assert "until it is shut down and started" in said
    assert "has the CPU back that it had" in site.run("cpu", "limit", NAME, "--to", "none").stdout
    assert "was not limited" in site.run("cpu", "limit", NAME, "--to", "none").stdout


def test_a_limit_that_the_host_cannot_give_is_refused(site: Site) -> None:
    assert "choose a lower one" in site.run("cpu", "limit", NAME, "--to", "x86-64-v4", code=3).stderr
    assert "knows no CPU model Zen9" in site.run("cpu", "limit", NAME, "--to", "Zen9", code=2).stderr
    assert site.world().machines[UUID].processor.limited_to == ""


def test_a_vm_that_is_being_moved_is_not_limited(site: Site) -> None:
    site.hold("copy")
    job = site.submit()
    ended = site.run("cpu", "limit", NAME, "--to", "x86-64-v2", code=3)
    assert f"is being moved by job {job}" in ended.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("check", NAME), "HOST"),
        (("baseline",), "HOST"),
        (("baseline", "h", "--virt", "xen"), "kvm, qemu"),
        (("limit", NAME), "--to"),
        (("limit", NAME, "--to", ""), "empty"),
        (("limit", NAME, "--to", "/nowhere/cpu.xml"), "cannot be read"),
    ],
)
def test_a_usage_error_ends_with_2_before_a_worker_is_started(site: Site, args: tuple[str, ...], says: str) -> None:
    assert says in site.run("cpu", *args, code=2).stderr
    assert not site.state.exists()
