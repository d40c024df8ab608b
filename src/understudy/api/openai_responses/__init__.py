"""/v1/responses, which Codex speaks: its bodies become those of chat completions, and answers are items and events."""
