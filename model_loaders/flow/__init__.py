"""The flow transformer of FLUX.2 [klein], its positions, and how a file becomes one."""
