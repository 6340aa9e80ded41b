//! A real Jaeger page over a store in memory, fed by OTLP over gRPC: for the demo, and for tests that read traces back
//! through Jaeger's query API. Loopback only; keeps the newest traces, forgets everything at its end.

#![allow(clippy::print_stdout, reason = "tells its parent that it is ready")]

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use otlp_embedded::{Config, State, TraceServiceImpl, TraceServiceServer, ui_app};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};

const TRACES: u32 = 10_000;
const MEMORY: usize = 128 << 20;

/// `weir-demo-jaeger OTLP_ADDRESS PAGE_ADDRESS`; prints `ready OTLP_ADDRESS PAGE_ADDRESS` with the ports it got.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [otlp, page] = arguments.as_slice() else {
        anyhow::bail!("usage: weir-demo-jaeger OTLP_ADDRESS PAGE_ADDRESS");
    };
    let (otlp, page) = (bind(otlp).await?, bind(page).await?);
    let state = State::new(Config { max_length: TRACES, max_memory_usage: MEMORY });
    println!("ready {} {}", otlp.local_addr()?, page.local_addr()?);

    let traces = TraceServiceServer::new(TraceServiceImpl::new(state.clone()));
    let receive = Server::builder().add_service(traces).serve_with_incoming(TcpIncoming::from(otlp));
    let show = async { axum::serve(page, ui_app(state, "/")).await };
    tokio::select! {
        ended = receive => ended.context("the OTLP receiver ended"),
        ended = show => ended.context("the page ended"),
    }
}

async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    let address: SocketAddr = address.parse().with_context(|| format!("`{address}` is no address with a port"))?;
    ensure!(address.ip().is_loopback(), "{address} is not on loopback: whoever reaches it sees all traces");
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
