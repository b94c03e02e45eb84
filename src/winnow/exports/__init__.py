"""A packed model in another form, for those who have no winnow."""
