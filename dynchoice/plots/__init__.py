"""Tables in, figures out (matplotlib, extra ``report``)."""
