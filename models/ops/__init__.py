"""Operations of networks that XLA does not do well, each with its plain form."""
