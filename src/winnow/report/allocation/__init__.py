"""How sparsity was spread over the layers: the chapter of a report, and its lines on a terminal."""
