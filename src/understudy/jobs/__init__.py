"""Batch jobs: a file of OpenAI's batch records is answered line by line into another, however often the work is cut short."""
