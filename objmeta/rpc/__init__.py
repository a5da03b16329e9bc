"""Messages between processes: gRPC streams of batches, encoded with msgspec.

Files: ``wire`` (what the messages hold), ``batching`` and ``streams`` (what queues up while a message is in flight
leaves in the next), ``options`` (settings of gRPC), ``peer`` (between nodes), ``service`` (a node's side of the client
stream), ``client`` (:class:`~objmeta.rpc.client.RemoteRegisters`, the clients' side) and ``link`` (its connection to
one node).
"""
