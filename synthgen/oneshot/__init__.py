"""Parts from one annotated example: SLiMe (Khani et al., *SLiMe: Segment Like Me*, ICLR 2024)."""
