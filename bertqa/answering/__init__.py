"""From scores to answers: decoding, metrics, evaluation, and the question answerer."""
