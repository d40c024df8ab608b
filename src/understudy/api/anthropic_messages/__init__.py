"""/v1/messages, which Claude Code speaks: its bodies become those of chat completions, and answers are blocks and events."""
