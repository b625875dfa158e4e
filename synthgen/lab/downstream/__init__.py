"""Does a segmenter learn from the labels? Downstream training, and what the labels are worth."""
