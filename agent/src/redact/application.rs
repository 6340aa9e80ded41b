//! Names of what rides on HTTP: identifiers by charset already, and still not to be a secret or somebody's number.

use std::sync::Arc;

use super::{TOKEN_PREFIXES, is_jwt, looks_sensitive};
use crate::model::{Application, GrpcStatus, JsonRpc, Role};

/// `error.type` of a tool that says it failed (semantic conventions for the Model Context Protocol).
const TOOL_ERROR: &str = "tool_error";

/// The same without names that look like secrets or personal data.
pub(super) fn masked(mut application: Application) -> Application {
    match &mut application {
        Application::Grpc(grpc) => {
            mask(&mut grpc.service);
            mask(&mut grpc.method);
        }
        Application::Graphql(graphql) => mask(&mut graphql.operation_name),
        Application::JsonRpc(call) => {
            mask(&mut call.method);
            if let Some(mcp) = &mut call.mcp {
                mask(&mut mcp.tool);
                mask(&mut mcp.protocol_version);
            }
        }
    }
    application
}

fn mask(name: &mut Option<Arc<str>>) {
    name.take_if(|name| looks_sensitive(name.as_bytes()) && !is_words(name.as_bytes()));
}

/// Long names are written in words, `listOrdersOfCustomerByDate`, as tokens are not: few digits, and a capital for every
/// three letters at most.
fn is_words(name: &[u8]) -> bool {
    // What stands between the words of a method.
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./:$".contains(byte);
    !TOKEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
        && !is_jwt(name)
        && name.iter().all(is_plain)
        && name.split(|byte| !byte.is_ascii_alphanumeric()).all(|run| {
            let digits = run.iter().filter(|byte| byte.is_ascii_digit()).count();
            let capitals = run.iter().filter(|byte| byte.is_ascii_uppercase()).count();
            digits < 3 && capitals.saturating_mul(3) <= run.len() - digits
        })
}

/// `error.type` by the protocol's own status, which stands in a response that HTTP calls good.
pub(super) fn error_type(application: &Application, role: Role) -> Option<Arc<str>> {
    match application {
        Application::Grpc(grpc) => {
            let failed = grpc.status.filter(|status| status.is_error(role == Role::Server));
            failed.map(GrpcStatus::name).map(Arc::from)
        }
        Application::JsonRpc(JsonRpc { error_code: Some(code), .. }) => Some(Arc::from(code.to_string())),
        Application::JsonRpc(call) => call.mcp.as_ref().filter(|mcp| mcp.tool_failed).map(|_| Arc::from(TOOL_ERROR)),
        Application::Graphql(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Graphql;

    #[test]
    fn names_of_words_stay_and_tokens_go() {
        for (name, stays) in [
            ("Basket", true),
            ("FeedPageHeaderActionsForOrganizationQuery", true),
            ("get_all_orders_of_customer_by_date_v2", true),
            ("orders.sum", true),
            ("GetHTTPHeaders2", true),
            ("4b0c1f9de77a4c3b9d2e8f60a1b2c3d4", false),
            ("orders.xKqZbTmWvLpNrSdFgHjC", false),
            ("ghp_abcdefghijklmnopqrstuvwxyz", false),
            ("ann@example.org", false),
            ("eyJhbGciOi.eyJzdWIiOi.abcdefghijklmnopqrstuv", false),
        ] {
            let graphql = Graphql { operation_name: Some(Arc::from(name)), ..Graphql::default() };
            let Application::Graphql(masked) = masked(Application::Graphql(graphql)) else { panic!("{name}") };
            assert_eq!(masked.operation_name.is_some(), stays, "{name}");
        }
    }
}
