//! The page: static files in the binary. Nothing of the observed traffic is in them; they ask the API like any client.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;

/// `(path, type, content)`.
const FILES: [(&str, &str, &str); 9] = [
    ("/", HTML, include_str!("ui/index.html")),
    ("/ui/style.css", "text/css; charset=utf-8", include_str!("ui/style.css")),
    ("/ui/app.js", JS, include_str!("ui/app.js")),
    ("/ui/client.js", JS, include_str!("ui/client.js")),
    ("/ui/calls.js", JS, include_str!("ui/calls.js")),
    ("/ui/endpoints.js", JS, include_str!("ui/endpoints.js")),
    ("/ui/open.js", JS, include_str!("ui/open.js")),
    ("/ui/trace.js", JS, include_str!("ui/trace.js")),
    ("/ui/icon.svg", "image/svg+xml", include_str!("ui/icon.svg")),
];
const HTML: &str = "text/html; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        // Asked again each time: an upgraded agent must not be shown by an old page.
        let answer = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")];
        router.route(path, get(move || async move { (answer, content).into_response() }))
    })
}
