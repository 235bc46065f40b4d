"""Models of one's own from the command line: converted, judged, measured, deployed, or refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests_support import ROOT, clean_environment  # type: ignore[import-not-found]
