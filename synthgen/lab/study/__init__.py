"""Parameter studies: BL's tables 2, 6, 7 and 8 for any backbone.

    prepare → capture → sweep → conclude        each resumable

Every image is captured once, with all layers that any row needs; the rows are then swept over the
stored head outputs. A row is the dataset's own pipeline (`synthgen.segmentation.segment`) with
other settings, scored like an audit (`synthgen.auditing.judge`).
"""
