"""
A client as a calculation: `node` puts the machines of the other packages together.

`exchanges` are its key exchanges with gateways, `renewal` says when keys are due for one, and `control` takes
what gateways say beside ESP.
"""
