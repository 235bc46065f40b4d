"""Inputs and outputs of a TFLite file, as the interpreter tells of them."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import numpy as np

from ..quantization import quantization_record
from .contract import tensor_record, with_distinct_names


def litert_records(
    interpreter: Any, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]
) -> Dict[str, List[Dict[str, Any]]]:
    """The records of `inputs` and `outputs`, with the signature's names where there is exactly one signature."""
    signed_inputs: Dict[str, Any] = {}
    signed_outputs: Dict[str, Any] = {}
    signatures = list(interpreter.get_signature_list())
    if len(signatures) == 1:
        signature = interpreter.get_signature_runner(signatures[0])
        signed_inputs, signed_outputs = signature.get_input_details(), signature.get_output_details()
    return {
        "inputs": with_distinct_names(_named(inputs, signed_inputs), "input"),
        "outputs": with_distinct_names(_named(outputs, signed_outputs), "output"),
    }


def _named(details: List[Dict[str, Any]], signed: Dict[str, Any]) -> List[Dict[str, Any]]:
    """A record for each tensor; a signature may give one tensor several names, and then lists it as often."""
    names: Dict[int, List[str]] = {}
    for name, detail in signed.items():
        names.setdefault(detail["index"], []).append(name)
    records = []
    for detail in details:
        left = names.get(detail["index"])
        records.append(_record(detail, left.pop(0) if left else detail["name"]))
    return records


def _record(detail: Dict[str, Any], name: str) -> Dict[str, Any]:
    signature: Optional[Any] = detail.get("shape_signature")
    shape = detail["shape"] if signature is None or len(signature) == 0 else signature
    dtype, scales = np.dtype(detail["dtype"]), detail["quantization_parameters"]
    quantization = None
    if dtype.kind in "iu":
        quantization = quantization_record(scales["scales"], scales["zero_points"], scales["quantized_dimension"])
    return tensor_record(name, list(shape), dtype.name, quantization=quantization, aliases=[detail["name"]])
