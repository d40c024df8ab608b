"""The OpenAI API without HTTP: what a body says, and the objects that answer it. The server and `understudy batch` use it."""
