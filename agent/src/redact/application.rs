//! Names of what rides on HTTP: identifiers by charset already, and still not to be a secret or somebody's number.

use std::sync::Arc;

use super::looks_sensitive;
use crate::model::{Application, GrpcStatus, Role};

/// The same without names that look like secrets or personal data.
pub(super) fn masked(mut application: Application) -> Application {
    match &mut application {
        Application::Grpc(grpc) => {
            mask(&mut grpc.service);
            mask(&mut grpc.method);
        }
    }
    application
}

fn mask(name: &mut Option<Arc<str>>) {
    name.take_if(|name| looks_sensitive(name.as_bytes()));
}

/// `error.type` by the protocol's own status, which stands in a response that HTTP calls good.
pub(super) fn error_type(application: &Application, role: Role) -> Option<Arc<str>> {
    match application {
        Application::Grpc(grpc) => {
            let failed = grpc.status.filter(|status| status.is_error(role == Role::Server));
            failed.map(GrpcStatus::name).map(Arc::from)
        }
    }
}
