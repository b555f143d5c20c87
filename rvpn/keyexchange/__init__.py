"""
The key exchange: GSS-like security contexts, and the transport that carries their tokens over UDP (DESIGN 4).

    noise, tls, context          the mechanisms: tokens in, tokens and key material out
    certificates, authenticator  what certificates must be for `tls`, and whose are accepted
    revocation                   what an authority has revoked
    credentials                  what a node authenticates with, and the contexts that it makes of that
    initiator, acceptor          one exchange at the end that begins it; all exchanges at the end that answers
    transport, fragments         tokens to datagrams and back, what was lost again
    tokens                       the layout of the datagrams
    cookies, freshness           proof that an address receives what is sent to it, and that nobody repeats it
    parameters, terms            what both ends tell each other, and what they agree to
    keys                         what goes into a context, and the keys that come out of it
"""
