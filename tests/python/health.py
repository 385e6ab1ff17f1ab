"""A health client that is not ours: grpcio with the stubs of grpcio-health-checking.

usage: health.py ADDRESS check|watch|list NAME [CA_FILE SERVER_NAME]

Prints one line a status: NOT_FOUND and the like for errors. `watch` ends with its stream.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LONG = 60


def open_channel(address, ca_file=None, server_name=None):
    """A channel, over TLS if an authority is named."""
    if ca_file is None:
        return grpc.insecure_channel(address)
    with open(ca_file, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    options = [("grpc.ssl_target_name_override", server_name)]
    return grpc.secure_channel(address, credentials, options)


def statuses(stub, verb, name):
    """What the server says, as names."""
    show = health_pb2.HealthCheckResponse.ServingStatus.Name
    request = health_pb2.HealthCheckRequest(service=name)
    if verb == "check":
        yield show(stub.Check(request, timeout=LONG).status)
    elif verb == "watch":
        for response in stub.Watch(request, timeout=LONG):
            yield show(response.status)
    else:
        listed = stub.List(health_pb2.HealthListRequest(), timeout=LONG).statuses
        for service in sorted(listed):
            yield f"{service or 'server'} {show(listed[service].status)}"


def main(address, verb, name, *tls):
    with open_channel(address, *tls) as channel:
        try:
            for status in statuses(health_pb2_grpc.HealthStub(channel), verb, name):
                print(status, flush=True)
        except grpc.RpcError as error:
            print(error.code().name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
