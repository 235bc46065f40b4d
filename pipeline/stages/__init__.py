"""The stages: one file each, a frozen config with `run(inputs, out_dir, tell)`.

The order of the stages is known to `pipeline.runner` alone; no stage knows another.
"""
