//! gRPC and gRPC-Web: service and method from the path, the status from the trailers.

use super::{Call, identifier, path};
use crate::model::{Application, Grpc, GrpcStatus, Headers, Messages, Streaming};
use crate::protocol::content::media_type;

const MEDIA_TYPE: &[u8] = b"application/grpc";

pub(super) fn recognise(call: &Call<'_>) -> Option<Application> {
    let Call { request, response, kind, .. } = *call;
    // Where a head was joined late, the other one may say it.
    let kind = kind.or_else(|| media_type(&response?.headers))?;
    let start = kind.get(..MEDIA_TYPE.len())?;
    let rest = kind.get(MEDIA_TYPE.len()..).unwrap_or_default();
    if !start.eq_ignore_ascii_case(MEDIA_TYPE) || !matches!(rest.first(), None | Some(b'+' | b'-')) {
        return None;
    }
    // A proxy may put gRPC-Web below a prefix: the last two segments count.
    let mut segments = path(&request.target).rsplitn(3, |&byte| byte == b'/');
    let (method, service) = (segments.next(), segments.next());
    let method = method.and_then(|name| identifier(name, b"-"));
    let service = service.and_then(|name| identifier(name, b".-")).filter(|_| method.is_some());
    let method = method.filter(|_| service.is_some());
    let status = response
        .and_then(|response| response.trailers.as_deref().and_then(status).or_else(|| status(&response.headers)));
    let requests = request.body.messages;
    let responses = response.and_then(|response| response.body.messages);
    let streaming = requests.zip(responses).and_then(|(requests, responses)| streaming(requests, responses));
    Some(Application::Grpc(Grpc { service, method, status, streaming }))
}

fn status(fields: &Headers) -> Option<GrpcStatus> {
    let value = fields.get("grpc-status")?;
    str::from_utf8(value).ok()?.parse().ok().map(GrpcStatus)
}

/// More than one message is certain even where some were not seen; at most one is not.
fn streaming(requests: Messages, responses: Messages) -> Option<Streaming> {
    let several = |messages: Messages| match messages.count {
        2.. => Some(true),
        _ => messages.exact.then_some(false),
    };
    Some(match (several(requests)?, several(responses)?) {
        (false, false) => Streaming::Unary,
        (true, false) => Streaming::Client,
        (false, true) => Streaming::Server,
        (true, true) => Streaming::Bidirectional,
    })
}
