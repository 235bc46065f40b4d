"""Where the operations of a model run, and how long each takes, by what the runtimes tell of themselves."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from .errors import AgentError
from .litert_times import NoTimes, measure_layers
from .runners import RUNNERS
from .runners.contract import Feed, InputShapes, make_feeds
from .runners.litert import import_interpreter
from .runners.litert_cached import CACHE_SUFFIX
from .runners.onnxruntime import import_onnxruntime, session_options
from .runners.openvino import import_openvino, plugin_config

MakeInputs = Callable[[Sequence[Dict[str, Any]], Sequence[Feed]], List[Any]]


def profile(
    runtime: str,
    path: str,
    *,
    num_threads: int,
    input_shapes: InputShapes,
    count: int,
    make_inputs: MakeInputs,
) -> Dict[str, Any]:
    """Runs a model with the runtime's profiler.

    Args:
        runtime: A name of `runners.RUNNERS`.
        path: The model file.
        num_threads: Of one inference.
        input_shapes: See `Runner.load`.
        count: Inferences after three that warm up.
        make_inputs: What makes a set of inputs.

    Returns:
        `layers`: in the order of execution each `name`, `operation`, `where` it runs and `ms` (the median of the
        inferences, or None); `partitions`: into how many pieces a delegate takes the graph, None where the runtime
        has none; `operations` of the graph as the runtime runs it; `delegated_share` of them, 0..1, that run where
        they are fast: in XNNPACK (LiteRT), in the first execution provider (ONNX Runtime), in a primitive that is not
        the reference one (OpenVINO); `kernels`: where these are not the layers (LiteRT), what ran instead, each as a
        layer, and None where the runtime does not tell; `inference_ms`: beside them, the whole inference; `reason` why
        there are no times.

    Raises:
        AgentError: The runtime can't be asked.
    """
    if path.endswith((".blob", CACHE_SUFFIX)):
        raise AgentError(f"{os.path.basename(path)} is compiled; profile the model that it was made of")
    runner = RUNNERS[runtime]()
    runner.load(path, num_threads=num_threads, input_shapes=input_shapes)
    records = runner.describe()["inputs"]
    inputs = make_inputs(records, make_feeds(records, input_shapes))
    if runtime == "onnxruntime":
        return _profile_onnxruntime(path, num_threads, records, inputs, count)
    if runtime == "openvino":
        return _profile_openvino(path, num_threads, inputs, count)
    if runtime == "litert":
        del runner
        return _profile_litert(path, num_threads, inputs, count)
    raise AgentError(f"the runtime '{runtime}' has no profiler")


def _profile_onnxruntime(
    path: str, num_threads: int, records: Sequence[Dict[str, Any]], inputs: List[Any], count: int
) -> Dict[str, Any]:
    onnxruntime, options = import_onnxruntime(), session_options(num_threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        options.profile_file_prefix = os.path.join(scratch, "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {record["name"]: array for record, array in zip(records, inputs)}
        for _ in range(3 + count):
            session.run(None, feeds)
        provider = session.get_providers()[0]
        with open(session.end_profiling(), encoding="utf-8") as stream:
            layers = parse_onnxruntime(json.load(stream), skip=3)
    return {
        "layers": layers,
        "partitions": None,
        "operations": len(layers),
        "delegated_share": sum(layer["where"] == provider for layer in layers) / len(layers) if layers else None,
        "reason": None,
    }


def parse_onnxruntime(events: Sequence[Mapping[str, Any]], *, skip: int) -> List[Dict[str, Any]]:
    """The layers of ONNX Runtime's profile.

    Args:
        events: The file's content.
        skip: So many inferences at the start do not count.
    """
    times: Dict[str, List[float]] = {}
    nodes: Dict[str, Tuple[str, str]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        given = event.get("args", {})
        node = name[: -len("_kernel_time")]
        nodes[node] = given.get("op_name", ""), given.get("provider", "")
        times.setdefault(node, []).append(float(event["dur"]) / 1000)
    return [
        {"name": node, "operation": operation, "where": where, "ms": _median(times[node][skip:])}
        for node, (operation, where) in nodes.items()
    ]


def _profile_openvino(path: str, num_threads: int, inputs: List[Any], count: int) -> Dict[str, Any]:
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(path)
    if any(port.get_partial_shape().is_dynamic for port in model.inputs):
        model.reshape({port: list(array.shape) for port, array in zip(model.inputs, inputs)})
    compiled = core.compile_model(model, "CPU", {**plugin_config(num_threads), "PERF_COUNT": True})
    request = compiled.create_infer_request()
    times: Dict[str, List[float]] = {}
    nodes: Dict[str, Tuple[str, str]] = {}
    for turn in range(3 + count):
        request.infer(inputs)
        for info in request.profiling_info if turn >= 3 else ():
            if str(info.status).endswith("EXECUTED"):
                nodes[info.node_name] = info.node_type, info.exec_type
                times.setdefault(info.node_name, []).append(info.real_time.total_seconds() * 1000)
    layers = [
        {"name": name, "operation": operation, "where": where, "ms": _median(times[name])}
        for name, (operation, where) in nodes.items()
        if operation not in {"Parameter", "Result", "Constant"}
    ]
    slow = sum(str(layer["where"]).startswith("ref") for layer in layers)
    return {
        "layers": layers,
        "partitions": None,
        "operations": len(layers),
        "delegated_share": 1 - slow / len(layers) if layers else None,
        "reason": None,
    }


def _profile_litert(path: str, num_threads: int, inputs: List[Any], count: int) -> Dict[str, Any]:
    interpreter_class, package, version = import_interpreter()
    interpreter = interpreter_class(model_path=path, num_threads=num_threads)
    details, resized = interpreter.get_input_details(), False
    for detail, array in zip(details, inputs):
        if tuple(detail["shape"]) != array.shape:
            interpreter.resize_tensor_input(detail["index"], array.shape)
            resized = True
    interpreter.allocate_tensors()
    if not hasattr(interpreter, "_get_ops_details"):
        raise AgentError(f"{package} {version} does not tell where operations run")
    found = litert_placement(interpreter._get_ops_details(), interpreter.get_tensor)
    del interpreter
    try:
        if resized:
            raise NoTimes("LiteRT is asked for times only where all dimensions of the inputs are fixed")
        named = [(detail["name"], array) for detail, array in zip(details, inputs)]
        times = measure_layers(
            path, package=package, version=version, num_threads=num_threads, count=count, inputs=named
        )
        _check_same_plan(found, times.built_in, times.partitions)
    except NoTimes as error:
        return {**found, "reason": str(error)}
    return {**found, "kernels": times.kernels, "inference_ms": times.inference_ms}


def _check_same_plan(found: Mapping[str, Any], built_in: Sequence[str], partitions: int) -> None:
    """Refuses times of another division of the graph than that of the interpreter, which is what inferences use.

    Raises:
        NoTimes: XNNPACK took other operations.
    """
    mine = sorted(layer["operation"] for layer in found["layers"] if layer["where"] != "XNNPACK")
    if (mine, found["partitions"]) != (list(built_in), partitions):
        raise NoTimes(
            f"LiteRT's profiler divides the graph in another way: {partitions} pieces for XNNPACK and outside of them "
            f"{', '.join(built_in) or 'nothing'}, where the interpreter has {found['partitions']} and "
            f"{', '.join(mine) or 'nothing'}"
        )


def litert_placement(operations: Sequence[Mapping[str, Any]], get_tensor: Callable[[int], Any]) -> Dict[str, Any]:
    """What XNNPACK has taken of a graph.

    The delegate's pieces stand in the list beside what they replaced. An operation was replaced where a piece gives
    its output, or where its output, being inside of a piece, has no memory.

    Args:
        operations: Of the interpreter: `op_name`, `index` and `outputs` of each.
        get_tensor: The interpreter's; raises ValueError for a tensor without memory.
    """
    pieces = [operation for operation in operations if operation["op_name"] == "DELEGATE"]
    given = {int(index) for piece in pieces for index in piece["outputs"]}
    layers = []
    for operation in operations:
        if operation["op_name"] == "DELEGATE":
            continue
        outputs = [int(index) for index in operation["outputs"]]
        inside = bool(given & set(outputs))
        if not inside:
            try:
                get_tensor(outputs[0])
            except ValueError:
                inside = True
        name, where = f"{operation['op_name']} {operation['index']}", "XNNPACK" if inside else "built-in kernel"
        layers.append({"name": name, "operation": operation["op_name"], "where": where, "ms": None})
    fast = sum(layer["where"] == "XNNPACK" for layer in layers)
    return {
        "layers": layers,
        "partitions": len(pieces),
        "operations": len(layers),
        "delegated_share": fast / len(layers) if layers else None,
        "kernels": None,
        "inference_ms": None,
        "reason": None,
    }


def _median(values: Sequence[float]) -> Optional[float]:
    return statistics.median(values) if values else None
