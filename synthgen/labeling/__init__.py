"""Class labels for pixels and masks, from how strongly each place attends to each class.

Pure: tensors and arrays in, labels out.
"""
