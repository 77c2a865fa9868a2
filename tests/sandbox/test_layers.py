"""The filter's tables and program, by a BPF interpreter of our own, for both machines; refusal where layers lack."""

import errno
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gtpo_mini
from gtpo_mini.sandbox import Sandbox, SandboxUnavailable, seccomp
from gtpo_mini.sandbox.seccomp import ALLOW, AUDIT_ARCH, JUDGE, REFUSE

ALLOWED, KILLED = 0x7FFF0000, 0x80000000
PID = 4711


def judge(machine: str, number: int, *arguments: int, may_open: bool = True, arch: int | None = None) -> int:
    """What the kernel would make of one call."""
    ready = seccomp.Filter(seccomp.program(machine, may_open))
    ready.for_pid(PID)
    code = ready.code.raw
    words = [number, AUDIT_ARCH[machine] if arch is None else arch, 0, 0]
    for value in (*arguments, *[0] * (6 - len(arguments))):
        words += [value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF]
    at, value = 0, 0
    while True:
        opcode, yes, no, k = (
            int.from_bytes(code[at * 8 + a : at * 8 + b], sys.byteorder) for a, b in ((0, 2), (2, 3), (3, 4), (4, 8))
        )
        at += 1
        if opcode == 0x20:
            value = words[k // 4]
        elif opcode == 0x54:
            value &= k
        elif opcode == 0x15:
            at += yes if value == k else no
        elif opcode == 0x35:
            at += yes if value >= k else no
        elif opcode == 0x05:
            at += k
        else:
            assert opcode == 0x06
            return k


def refused(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize("machine", AUDIT_ARCH)
def test_every_call_gets_what_its_table_says(machine):
    known = {}
    for table in (ALLOW, JUDGE, REFUSE):
        for name, number in table[machine].items():
            assert number not in known, f"{name} and {known[number]}"
            known[number] = name
    for number in range(600):
        verdict = judge(machine, number, 1 << 40, 1 << 40, 1 << 40)
        name = known.get(number)
        if name in ALLOW[machine]:
            assert verdict == ALLOWED, name
        elif name in REFUSE[machine]:
            assert verdict in (refused(errno.EPERM), refused(errno.EACCES)), name
        elif name is None:
            assert verdict == refused(errno.ENOSYS), number
    assert judge(machine, 0, arch=0x40000003) == KILLED
    assert judge(machine, 0x40000000 + 39) == refused(errno.ENOSYS)


@pytest.mark.parametrize("machine", AUDIT_ARCH)
def test_arguments_decide(machine):
    number = JUDGE[machine]
    no, eacces = refused(errno.EPERM), refused(errno.EACCES)
    cases = [
        ("clone", (0x3D0F00,), ALLOWED),
        ("clone", (17,), no),
        ("clone", (0x3D0F00 | 0x20000000,), no),
        ("kill", (PID, 15), ALLOWED),
        ("kill", (PID + 1, 15), no),
        ("kill", (0xFFFFFFFFFFFFFFFF, 9), no),
        ("kill", (0, 9), no),
        ("tgkill", (PID, 1, 2), ALLOWED),
        ("tgkill", (1, PID, 2), no),
        ("socketpair", (1, 1 | 0o2000000), ALLOWED),
        ("socketpair", (1, 2), no),
        ("socketpair", (2, 1), no),
        ("fcntl", (5, 4, 0), ALLOWED),
        ("fcntl", (5, 8, 1), no),
        ("fcntl", (5, 10, 9), no),
        ("ioctl", (0, 0x5412), refused(errno.ENOTTY)),
        ("prlimit64", (0, 9, 0, 1 << 35), ALLOWED),
        ("prlimit64", (0, 9, 1 << 35, 0), no),
        ("prlimit64", (1, 9, 0, 0), no),
        ("prctl", (1, 0), no),
        ("prctl", (15, 1), ALLOWED),
        ("openat", (3, 0, 0o2000000), ALLOWED),
        *[("openat", (3, 0, flag), eacces) for flag in (1, 2, 3, 0o100, 0o1000, 0o2000, 0o20200000)],
    ]
    for name, arguments, verdict in cases:
        assert judge(machine, number[name], *arguments) == verdict, (name, arguments)
    assert judge(machine, number["openat"], 3, 0, 0, may_open=False) == eacces


def test_numbers_are_those_of_the_kernel_s_headers():
    """Against the C headers, and against libseccomp through pyseccomp, where they are installed."""
    checked = 0
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    generic = Path("/usr/include/asm-generic/unistd.h")
    for path, machine in ((header, "x86_64"), (generic, "aarch64")):
        if path.exists():
            lines = [line.split() for line in path.read_text().splitlines() if line.startswith("#define __NR")]
            numbers = {w[1].split("_", 3)[3]: int(w[2]) for w in lines if len(w) > 2 and w[2].isdigit()}
            for name, number in {**ALLOW[machine], **JUDGE[machine], **REFUSE[machine]}.items():
                if name in numbers:
                    assert numbers[name] == number, name
                    checked += 1
    try:
        import pyseccomp
    except (ImportError, RuntimeError):
        pyseccomp = None
    if pyseccomp is not None:
        for machine, arch in (("x86_64", pyseccomp.Arch.X86_64), ("aarch64", pyseccomp.Arch.AARCH64)):
            for name, number in {**ALLOW[machine], **JUDGE[machine], **REFUSE[machine]}.items():
                assert pyseccomp.resolve_syscall(arch, name) == number, name
                checked += 1
    if not checked:
        pytest.skip("neither kernel headers nor pyseccomp here")
    assert checked > 100


def test_protection_is_what_a_canary_measured(box):
    from gtpo_mini.sandbox.canary import ACTS

    assert box.protection.refused == tuple(ACTS) and box.protection.allowed == ()
    tier = "root" if os.getuid() == 0 else "user"
    assert box.protection.tier in (tier, f"{tier}+landlock")
    assert "refused: read a file" in str(box.protection)


def test_canaries_see_an_open_door(capfd):
    with Sandbox(confinement="unconfined", workers=1) as sandbox:
        assert "UNCONFINED" in capfd.readouterr().err
        assert len(sandbox.protection.allowed) >= 8 and sandbox.protection.tier == "unconfined"
    with Sandbox(confinement="unconfined", workers=1):
        assert "UNCONFINED" in capfd.readouterr().err  # at every start


@pytest.mark.parametrize("layer, act", [("seccomp", "start a process"), ("landlock", "read a file")])
def test_a_layer_that_only_pretends_is_noticed(layer, act, tmp_path, box):
    """The canaries look at what is refused, not at what a layer reports."""
    if layer == "landlock" and "landlock" not in box.protection.tier:
        pytest.skip("no Landlock here")
    package = Path(gtpo_mini.__file__).parent
    copy = tmp_path / "gtpo_mini"
    shutil.copytree(package / "sandbox", copy / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "types.py"):
        shutil.copy(package / name, copy / name)
    pretend = {"seccomp": "Filter.install = lambda self, libc: None", "landlock": "def restrict(libc, fd): pass"}[layer]
    with open(copy / "sandbox" / f"{layer}.py", "a") as file:
        file.write(f"\n\n{pretend}\n")
    code = "from gtpo_mini.sandbox import Sandbox\nSandbox()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "SandboxUnavailable: snippets could" in done.stderr and act in done.stderr and "Docker" in done.stderr


def test_other_systems_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match=r"Docker.*unconfined"):
        Sandbox()
    monkeypatch.setattr(sys, "platform", "win32")
    for confinement in ("full", "unconfined"):
        with pytest.raises(SandboxUnavailable, match="WSL2"):
            Sandbox(confinement=confinement)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "sparc64")
    with pytest.raises(SandboxUnavailable, match="sparc64"):
        Sandbox()
    with pytest.raises(ValueError, match="confinement"):
        Sandbox(confinement="off")
