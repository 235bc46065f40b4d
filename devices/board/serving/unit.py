"""The systemd units of a board.

That of the server: a user of its own, and nothing of the machine that it does not need. And one that finishes an
interrupted installation at boot, before the server starts, as the user that owns the releases.
"""

from __future__ import annotations

from typing import List, Mapping, Sequence

from ..errors import AgentError

_CREDENTIALS = "${CREDENTIALS_DIRECTORY}"
_HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 (they are looked for)

_TEMPLATE = """\
# Written by `edgeship-board unit`. Install it as /etc/systemd/system/edgeship-board.service, then:
#   systemctl daemon-reload && systemctl enable --now edgeship-board
[Unit]
Description=Edgeship: serves the installed models
Documentation=https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
After=network.target
ConditionPathExists={root}
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
WatchdogSec=30
TimeoutStartSec=120
TimeoutStopSec=30
{environment}
DynamicUser=yes
SupplementaryGroups={group}
UMask=0077
WorkingDirectory=/
{credentials}
ProtectSystem=strict
ProtectHome={protect_home}
{bind}
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
PrivateIPC=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
ProcSubset=all
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
KeyringMode=private
# XNNPACK and OpenVINO write machine code at run time, which this would forbid.
MemoryDenyWriteExecute=no
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
{addresses}
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# The runtimes pin their threads to cores and ask where they run; both belong to @resources.
SystemCallFilter=sched_setaffinity sched_setscheduler sched_setparam sched_setattr setpriority set_mempolicy mbind
SystemCallErrorNumber=EPERM
LimitCORE=0
LimitNOFILE=1024
TasksMax=256
MemoryMax={memory_max}

[Install]
WantedBy=multi-user.target
"""

_RECOVERY = """\
# Written by `edgeship-board unit --recover`. Install it as /etc/systemd/system/edgeship-recover.service, then:
#   systemctl daemon-reload && systemctl enable edgeship-recover
[Unit]
Description=Edgeship: goes back from a release whose watch was interrupted
After=local-fs.target
Before={before}
RequiresMountsFor={quoted_root}
ConditionPathExists={root}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command}
TimeoutStartSec=300
User={user}
{environment}
UMask=0022
WorkingDirectory=/
ProtectSystem=strict
ProtectHome={protect_home}
{bind}
ReadWritePaths={quoted_root}
PrivateTmp=yes
PrivateDevices=yes
PrivateNetwork=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def unit_text(
    command: Sequence[str],
    *,
    root: str,
    packages: Sequence[str] = (),
    reads: Sequence[str] = (),
    secrets: Mapping[str, str] = {},
    group: str = "",
    memory_max: str = "80%",
    loopback: bool = True,
) -> str:
    """The unit's text.

    Args:
        command: That starts the server, with an absolute path first.
        root: Where releases lie; the server reads it only.
        packages: Directories that Python also looks for packages in.
        reads: Further files and directories that the server reads, such as Python itself; said here because homes
            and directories for temporary files are hidden from it otherwise.
        secrets: Files by the option of the command that takes them, without the dashes; systemd hands them to the
            service as credentials, so that only root needs to read them.
        group: That may read the root, where others may not.
        memory_max: See systemd.resource-control(5).
        loopback: Whether only this machine may reach the service, which systemd then sees to as well.

    Raises:
        AgentError: A word can't be written in a unit.
    """
    _check_words([*command, root, *packages, *reads, *secrets.values(), group, memory_max])
    _check_paths([command[0], root, *packages, *reads, *secrets.values()])
    words = [_quoted(word) for word in command]
    for option in secrets:
        words += [f"--{option}", f"{_CREDENTIALS}/{option}"]
    hidden = sorted({path for path in (root, *packages, *reads) if path.startswith(_HIDDEN)})
    lines = _TEMPLATE.format(
        root=_escaped(root),
        command=" ".join(words),
        environment=f"Environment={_quoted('PYTHONPATH=' + ':'.join(packages))}" if packages else "",
        group=group,
        credentials="\n".join(f"LoadCredential={option}:{_escaped(path)}" for option, path in secrets.items()),
        protect_home="tmpfs" if hidden else "yes",
        bind="\n".join(f"BindReadOnlyPaths={_quoted(path)}" for path in hidden),
        addresses="IPAddressDeny=any\nIPAddressAllow=localhost" if loopback else "",
        memory_max=memory_max,
    ).splitlines()
    kept: List[str] = [line for line in lines if line and line != "SupplementaryGroups="]
    return "\n".join(_spaced(kept)) + "\n"


def recovery_text(
    command: Sequence[str],
    *,
    root: str,
    user: str,
    packages: Sequence[str] = (),
    reads: Sequence[str] = (),
    before: Sequence[str] = ("edgeship-board.service",),
) -> str:
    """The text of the unit that runs once at boot.

    Args:
        command: That finishes what was interrupted, with an absolute path first.
        root: Where releases lie, the only place that may be written.
        user: Owns them.
        packages: Directories that Python also looks for packages in.
        reads: Further files and directories that are read.
        before: Units of the services that use the releases.

    Raises:
        AgentError: A word can't be written in a unit.
    """
    _check_words([*command, root, user, *packages, *reads, *before])
    _check_paths([command[0], root, *packages, *reads])
    at_home = sorted({path for path in (*packages, *reads) if path.startswith(_HIDDEN)})
    lines = _RECOVERY.format(
        root=_escaped(root),
        quoted_root=_quoted(root),
        command=" ".join(map(_quoted, command)),
        user=_escaped(user),
        before=" ".join(before),
        environment=f"Environment={_quoted('PYTHONPATH=' + ':'.join(packages))}" if packages else "",
        protect_home="tmpfs" if at_home or root.startswith(_HIDDEN) else "yes",
        bind="\n".join(
            [f"BindReadOnlyPaths={_quoted(path)}" for path in at_home]
            + ([f"BindPaths={_quoted(root)}"] if root.startswith(_HIDDEN) else [])
        ),
    ).splitlines()
    return "\n".join(_spaced([line for line in lines if line])) + "\n"


def _check_words(words: Sequence[str]) -> None:
    for word in words:
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in word):
            raise AgentError(f"{word!r} holds a control character, which a unit can't; take another path")


def _check_paths(paths: Sequence[str]) -> None:
    for path in paths:
        if not path.startswith("/"):
            raise AgentError(f"{path!r} is no absolute path, which a unit needs")
        if ":" in path:
            raise AgentError(f"{path!r} holds a colon, which parts paths in a unit; take another path")


def _spaced(lines: Sequence[str]) -> List[str]:
    """An empty line before each section but the first."""
    spaced: List[str] = []
    for line in lines:
        if line.startswith("[") and line != "[Unit]":
            spaced.append("")
        spaced.append(line)
    return spaced


def _escaped(word: str) -> str:
    """Without what systemd would replace: specifiers such as %h."""
    return word.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word of a command line as systemd splits it (systemd.service(5), "Command lines")."""
    escaped = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    plain = escaped and all(character.isalnum() or character in "/._-=:@+,%" for character in escaped)
    return escaped if plain else f'"{escaped}"'
