"""Where a training can be watched: one file a tracker. They run in the runner's process and change no artifact."""
