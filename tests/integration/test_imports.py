MODELS_SCRIPT = r"""
import json, os, sys
from pathlib import Path

import keras
import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as ops
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

out = Path(sys.argv[1])
os.chdir(out)
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
layers = keras.layers


def net(name="My-Input", size=8, softmax=True, batch=None):
    image = keras.Input((size, size, 3), name=name, batch_size=batch)
    x = layers.Conv2D(4, 3, activation="relu")(image)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(5, activation="softmax" if softmax else None, name="probs")(x))


# Keras
model = net()
model.compile("sgd", "mse")  # which import leaves out
model.save("net.keras")
model.save("net.h5")
model.save_weights("net.weights.h5")
net().save_weights("only.weights.h5")
os.link("only.weights.h5", "only.h5")
net(size=None).save("free.keras")
net(batch=4).save("batch4.keras")

left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right", dtype="float16")
joined = layers.Concatenate()([left, layers.Lambda(lambda x: x)(right) if False else layers.Rescaling(1.0)(right)])
first, second = layers.Dense(3, name="zeta")(joined), layers.Dense(2, activation="softmax", name="alpha")(joined)
keras.Model({"a": left, "b": right}, [first, second]).save("two.keras")
sequence = keras.Sequential([keras.Input((12, 3)), layers.GRU(4), layers.Dense(2)])
sequence.save("gru.keras")
keras.Sequential([layers.Dense(3)]).save("unbuilt.keras")


class Scaled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable(package="mine")
class Registered(Scaled):
    pass


@keras.saving.register_keras_serializable(package="mine")
class Whole(keras.Model):
    def __init__(self, **kw):
        super().__init__(**kw)
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def squared(x):
    return x * x


keras.Sequential([keras.Input((3,)), Scaled(), Registered(), Scaled(name="again")]).save("custom.keras")
keras.Sequential([keras.Input((3,)), Registered()]).save("registered.keras")
keras.Sequential([keras.Input((3,)), Registered()]).save("registered.h5")
keras.Sequential([keras.Input((3,)), layers.Dense(2, activation=squared)]).save("function.keras")
keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x + 1, name="plus_one")]).save("lambda.keras")
keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x + 1, name="plus_one")]).save("lambda.h5")
whole = Whole()
whole(np.zeros((1, 3), np.float32))
whole.save("subclass.keras")

# SavedModels
model.export("exported", verbose=False)
spec = lambda shape, dtype="float32", name=None: tf.TensorSpec(shape, dtype, name=name)


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(rng.normal(size=(6, 5)).astype("float32"))

    @tf.function(input_signature=[spec([None, None, 6], name="Series"), spec([2], "int32", "bias")])
    def two(self, series, bias):
        return {"b_last": series @ self.weight, "a_first": tf.reduce_sum(bias)}

    @tf.function(input_signature=[spec([None, 6])])
    def one(self, x):
        return {"y": x @ self.weight}

    @tf.function(input_signature=[spec([None], "string")])
    def text(self, x):
        return {"y": tf.strings.length(x)}

    @tf.function(input_signature=[spec([None, 6])])
    def python(self, x):
        return {"y": tf.numpy_function(lambda v: v, [x], "float32")}

    @tf.function(input_signature=[spec(None)])
    def any_rank(self, x):
        return {"y": x * self.weight[0, 0]}

    @tf.function(input_signature=[spec([None, 6])])
    def selects(self, x):
        return {"y": tf.boolean_mask(x, x > 0)}


module = Module()
for name in ("two", "one", "text", "python", "any_rank", "selects"):
    tf.saved_model.save(module, name, signatures={"serving_default": getattr(module, name)})
tf.saved_model.save(module, "several", signatures={"serving_default": module.one, "other": module.text})
tf.saved_model.save(module, "unsigned")

# TensorFlow Lite
def convert(directory, **settings):
    converter = tf.lite.TFLiteConverter.from_saved_model(directory)
    for key, value in settings.items():
        target = converter.target_spec if key == "supported_ops" else converter
        setattr(target, key, value)
    return converter.convert()

builtins, select = tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS
Path("net.tflite").write_bytes(convert("exported"))


class Hard(tf.Module):
    @tf.function(input_signature=[spec([1, 3, 3])])
    def hard(self, x):
        return {"y": tf.linalg.matrix_exponential(x)[0] if False else tf.raw_ops.MatrixInverse(input=x)}


hard = Hard()
tf.saved_model.save(hard, "hard", signatures={"serving_default": hard.hard})
Path("flex.tflite").write_bytes(convert("hard", supported_ops=[builtins, select]))
Path("custom.tflite").write_bytes(convert("hard", supported_ops=[builtins], allow_custom_ops=True))
static = net(batch=1)
static.export("static", verbose=False)
images = rng.normal(size=(32, 1, 8, 8, 3)).astype("float32")
Path("int8.tflite").write_bytes(convert(
    "static", optimizations=[tf.lite.Optimize.DEFAULT], supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8],
    representative_dataset=lambda: ([image] for image in images),
    inference_input_type=tf.int8, inference_output_type=tf.int8,
))

# ONNX
def weights(name, *shape):
    return numpy_helper.from_array(rng.normal(size=shape).astype("float32"), name)


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def onnx_model(nodes, inputs, outputs, constants=(), domains=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


node = helper.make_node
classifier = [
    node("Conv", ["image", "kernel"], ["maps"]),
    node("GlobalAveragePool", ["maps"], ["pooled"]),
    node("Flatten", ["pooled"], ["flat"]),
    node("Softmax", ["flat"], ["probs"]),
]
kernel = weights("kernel", 4, 3, 3, 3)
net_onnx = onnx_model(classifier, [value("image", ["n", 3, "h", "w"])], [value("probs", ["n", 4])], [kernel])
onnx.save(net_onnx, "net.onnx")
onnx.save(net_onnx, "outside.onnx", save_as_external_data=True, location="outside.weights", size_threshold=0)
onnx.save(onnx_model([node("Foo", ["x"], ["y"], domain="acme")], [value("x", [1, 3])], [value("y", [1, 3])],
    domains=["acme"]), "custom.onnx")
onnx.save(onnx_model([node("Bar", ["x"], ["y"])], [value("x", [1, 3])], [value("y", [1, 3])]), "unknown.onnx")
onnx.save(onnx_model([node("Relu", ["z"], ["y"])], [value("x", [1, 3])], [value("y", [1, 3])]), "dangling.onnx")
onnx.save(onnx_model([node("Identity", ["x"], ["y"])], [value("x", [1, 3], TensorProto.STRING)],
    [value("y", [1, 3], TensorProto.STRING)]), "text.onnx")
onnx.save(onnx_model([node("Constant", [], ["y"], value=weights("c", 1, 3))], [], [value("y", [1, 3])]), "sourceless.onnx")
sinkless = onnx_model([node("Relu", ["x"], ["y"])], [value("x", [1, 3])], [value("y", [1, 3])])
del sinkless.graph.output[:]
onnx.save(sinkless, "sinkless.onnx")
onnx.save(onnx_model([node("Relu", ["x"], ["y"])], [value("x", [4, 3])], [value("y", [4, 3])]), "batch4.onnx")
onnx.save(onnx_model([node("Add", ["left", "right"], ["sum"]), node("Mul", ["left", "right"], ["product"])],
    [value("left", ["n", "t"]), value("right", ["n", "t"])], [value("sum", ["n", "t"]), value("product", None)]),
    "pair.onnx")

# OpenVINO
def openvino_model(image, name):
    conv = ops.convolution(image, rng.normal(size=(4, 3, 3, 3)).astype("float32"), [1, 1], [0, 0], [0, 0], [1, 1])
    pooled = ops.reduce_mean(conv, np.array([2, 3]), False)
    found = ov.Model([ops.softmax(pooled, 1)], [image], "net")
    if name:
        found.inputs[0].get_tensor().set_names({name})
        found.outputs[0].get_tensor().set_names({"probs"})
    return found


ov.save_model(openvino_model(ops.parameter([-1, 3, 8, 8], np.float32, name="node"), "image"), "net.xml")
ov.save_model(openvino_model(ops.parameter([-1, 3, -1, -1], np.float32, name="nameless"), ""), "nameless.xml")
unknown = Path("net.xml").read_text().replace('type="SoftMax" version="opset8"', 'type="Twirl" version="acme"')
assert "Twirl" in unknown
Path("custom.xml").write_text(unknown)
Path("custom.bin").write_bytes(Path("net.bin").read_bytes())

# What they give
x = rng.normal(size=(3, 1, 8, 8, 3)).astype("float32")
np.savez("expected.npz", x=x, keras=np.concatenate([model(each, training=False) for each in x]),
    static=np.concatenate([static(each, training=False) for each in x]))
"""
