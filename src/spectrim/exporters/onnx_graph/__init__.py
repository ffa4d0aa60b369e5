"""The ONNX graph of a decoder, made node by node: nodes, blocks of codes, maps, the decoder."""
