"""What the agent reports by name; the host turns each into an error of its own."""

from __future__ import annotations


class AgentError(Exception):
    """A request that the agent can't carry out; the message says what to do."""


class BadInput(AgentError):
    """What the user asked for can't be had on this board; only the board could know."""


class ModelRejected(AgentError):
    """The model file is bad: its digest differs, it does not load, or its tensors can't be used."""


class RuntimeMissing(AgentError):
    """The runtime that the model needs is not installed; the message says what to install."""
