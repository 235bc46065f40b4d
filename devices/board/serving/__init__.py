"""The server of models on a board: the Open Inference Protocol over HTTP, by the standard library alone."""
