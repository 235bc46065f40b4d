"""Why a board does not install a release."""

from __future__ import annotations

from typing import ClassVar


class Refusal(Exception):
    """The board keeps what it has; the message says why and what to do.

    Attributes:
        kind: What the host makes an error of.
        step: The step of the installation at which it came up.
    """

    kind: ClassVar[str] = "device"
    step: str = ""


class BadBundle(Refusal):
    """The file is no bundle, is damaged, or wants what no bundle may."""

    kind = "bundle"


class BadSignature(Refusal):
    """The bundle is not signed, or not by somebody this board trusts."""

    kind = "signature"


class NoRoom(Refusal):
    """The storage has no room for the release."""

    kind = "storage"


class Unfit(Refusal):
    """The release is for another kind of board, or its runtime is missing."""

    kind = "unfit"


class FailedTest(Refusal):
    """The release does not answer as it should, or not as fast."""

    kind = "self-test"


class FailedWatch(Refusal):
    """After the switch the service was not well; the message says which release is in use now."""

    kind = "watch"


class BadSetting(Refusal):
    """A setting that can't be like this on this board; it was not changed."""

    kind = "setting"
