"""From text to the activation cache: documents, packed token windows, rows of the hooked layers, shards of `store`."""
