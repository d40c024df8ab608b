"""What is known of transformers' models: configs, names, modules, switches, and which of them would not run exactly."""
