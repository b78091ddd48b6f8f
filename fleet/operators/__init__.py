"""People and their tools: tokens, roles, and the audit log of what they did.

What is asked over HTTP passes the desk (``fleet.operators.desk``); who works on the fleet folder itself uses
``fleet.operators.folder``. Nothing is imported here: the configuration needs the settings alone.
"""
