"""What an observer outside sees of a snippet: files, sockets, processes, signals, leaked text."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from gtpo_mini.sandbox import Limits, Sandbox

SECRET = "hidden-gold-7fe1"
LIMITS = Limits(cpu_seconds=0.4, wall_seconds=0.8, memory_mib=256, output_kib=16)


class Outside:
    """Victims, and `traces`: what an act did to them. Set up so that only the sandbox can be what stops an act."""

    def __init__(self) -> None:
        os.environ["GTPO_TEST_TOKEN"] = SECRET
        self.buffer = ctypes.create_string_buffer(SECRET.encode(), 32)
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="gtpo-outside-")))
        self.open = self.folder / "open"
        self.open.mkdir()
        for path in (self.folder, self.open):
            path.chmod(0o777)
        (self.folder / "secret").write_text(SECRET)
        (self.folder / SECRET).mkdir()
        (self.folder / "link").symlink_to(SECRET)
        self.victim = self.open / "victim"
        self.tcp = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.mails = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        self.mails[0].bind(("127.0.0.1", 0))
        self.abstract = uuid.uuid4().hex
        for address in (str(self.folder / "mail"), "\0" + self.abstract):
            self.mails.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self.mails[-1].bind(address)
        (self.folder / "mail").chmod(0o777)
        for link in (self.tcp, *self.mails):
            link.setblocking(False)
            self.stack.callback(link.close)
        self.usr1 = 0
        self.old = signal.signal(signal.SIGUSR1, self._count)
        self.bystander = None
        self.reset()

    def _count(self, number, frame) -> None:
        self.usr1 += 1

    def reset(self) -> None:
        """Put everything back as it was."""
        self.traces()
        for path in self.open.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        self.victim.write_text("untouched")
        self.victim.chmod(0o666)
        os.utime(self.victim, (1, 1))
        self.usr1 = 0
        if self.bystander is None or self.bystander.poll() is not None:
            self.bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"])
        self.bystander.send_signal(signal.SIGCONT)
        time.sleep(0.005)

    def traces(self) -> list[str]:
        """What is not as it was."""
        found = []
        names = sorted(path.name for path in self.open.iterdir())
        if names != ["victim"]:
            found.append(f"files: {names}")
        elif self.victim.read_text() != "untouched" or self.victim.stat().st_mtime != 1:
            found.append("the victim file was changed")
        elif self.victim.stat().st_mode & 0o777 != 0o666:
            found.append("the victim file's mode was changed")
        with contextlib.suppress(BlockingIOError):
            self.tcp.accept()[0].close()
            found.append("a TCP connection came")
        for mail in self.mails:
            with contextlib.suppress(BlockingIOError):
                mail.recv(99)
                found.append("a datagram came")
        if self.usr1:
            found.append("the trainer got a signal")
        if self.bystander is not None:
            state = Path(f"/proc/{self.bystander.pid}/stat").read_text().rpartition(")")[2].split()
            if state[0] not in "SR":
                found.append(f"the bystander is in state {state[0]}")
            if os.getpriority(os.PRIO_PROCESS, self.bystander.pid) != os.getpriority(os.PRIO_PROCESS, 0):
                found.append("the bystander's priority was changed")
        return found

    def fill(self, code: str) -> str:
        """A case's code with the victims' names."""
        return code.format(
            folder=self.folder,
            trainer=os.getpid(),
            bystander=self.bystander.pid,
            address=ctypes.addressof(self.buffer),
            port=self.tcp.getsockname()[1],
            udp=self.mails[0].getsockname()[1],
            abstract=self.abstract,
        )

    def close(self) -> None:
        signal.signal(signal.SIGUSR1, self.old)
        self.bystander.kill()
        self.bystander.wait()
        self.stack.close()
        os.environ.pop("GTPO_TEST_TOKEN", None)


def servers(sandbox: Sandbox) -> list[int]:
    """Process ids of the fork servers."""
    return [link._process.pid for link in sandbox._links]


def strangers(sandbox: Sandbox) -> list[str]:
    """Processes in a fork server's session that are neither it nor a child of it: daemons that got away."""
    roots, found = servers(sandbox), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{name}/stat").read_text()
            state, parent, _, session = text.rpartition(")")[2].split()[:4]
            ours = int(name) in roots or int(parent) in roots
            if int(session) in roots and not ours and state != "Z":
                found.append(text)
    return found


def violations(sandbox: Sandbox, outside: Outside, case, prelude: str) -> list[str]:
    """Run one case and say all that went wrong. Leaves no process behind."""
    outside.reset()
    code = outside.fill(case.code) if case.plain else prelude + outside.fill(case.code)
    start = time.monotonic()
    result = sandbox.run(code)
    seconds = time.monotonic() - start
    found = outside.traces()
    text = result.stdout + result.stderr + result.error
    if "BREACH" in result.stdout + result.stderr:  # a traceback quotes the snippet's lines
        found.append("the snippet got through")
    if SECRET in text:
        found.append("the secret came out")
    if case.ends and (result.ok or case.ends not in result.error):
        found.append(f"it ended otherwise than by {case.ends}: {result}")
    if len(result.stdout) > 16 * 1024 or len(result.error) > 4000:
        found.append("more came back than the limit")
    # Waiting for a core does not count, so a loaded machine may take longer; nothing here may take this long.
    if seconds > 20 or result.cpu_seconds > 1.5:
        found.append(f"it took {seconds:.1f} s, {result.cpu_seconds:.1f} s of CPU")
    gone = strangers(sandbox)
    found += [f"a process got away: {text}" for text in gone]
    for text in gone:
        os.kill(int(text.split()[0]), signal.SIGKILL)
    if sandbox.run("print(str(6 * 7))").stdout != "42\n":
        found.append("the next snippet did not run")
    return found
