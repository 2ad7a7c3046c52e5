"""Language models and their rivals on closed questions: recording and measuring."""
