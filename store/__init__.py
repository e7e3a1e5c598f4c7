"""Every byte that crosses a stage: the activation cache, the SAE artefact, and the pure functions that define them."""
