//! Answers in one piece. In a session, rmcp answers with a stream of events, of which the first is empty: it is for clients
//! that resume. Sent one by one, a short answer would cost two writes, and wake its client twice.

use std::pin::pin;

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures::{StreamExt, stream};
use http_body_util::BodyExt;

use crate::limits;

const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Collects the events of the first moment into one piece: all events, if the response ends within it.
pub async fn gathered(response: Response) -> Response {
    if response.headers().get(header::CONTENT_TYPE) != Some(&EVENTS) {
        return response;
    }
    let (head, mut body) = response.into_parts();
    let (mut events, mut moment) = (Vec::new(), pin!(tokio::time::sleep(limits::GATHERED)));
    loop {
        tokio::select! {
            biased;
            frame = body.frame() => match frame {
                Some(Ok(frame)) => events.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(e)) => return Response::from_parts(head, Body::from_stream(stream::iter([Err::<Bytes, _>(e)]))),
                None => return Response::from_parts(head, Body::from(events)),
            },
            () = &mut moment => break,
        }
    }
    let events = stream::iter([Ok(Bytes::from(events))]);
    Response::from_parts(head, Body::from_stream(events.chain(body.into_data_stream())))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;

    /// A response with what is sent as its events.
    fn response() -> (UnboundedSender<&'static str>, Response) {
        let (sender, events) = unbounded_channel();
        let next = async |mut events: UnboundedReceiver<_>| {
            let event = events.recv().await?;
            Some((Ok::<_, axum::Error>(Bytes::from(event)), events))
        };
        let body = Body::from_stream(stream::unfold(events, next));
        (sender, Response::builder().header(header::CONTENT_TYPE, EVENTS).body(body).unwrap())
    }

    #[tokio::test]
    async fn short_answer_is_one_frame() {
        let (sender, response) = response();
        ["data:\n\n", "data: 1\n\n"].iter().for_each(|event| sender.send(event).unwrap());
        drop(sender);
        let mut frames = gathered(response).await.into_body().into_data_stream();
        assert_eq!(frames.next().await.unwrap().unwrap(), "data:\n\ndata: 1\n\n");
        assert!(frames.next().await.is_none());
    }

    #[tokio::test]
    async fn long_answer_begins_before_its_end() {
        let (sender, response) = response();
        ["data:\n\n", "data: 1\n\n"].iter().for_each(|event| sender.send(event).unwrap());
        let mut frames = gathered(response).await.into_body().into_data_stream();
        assert_eq!(frames.next().await.unwrap().unwrap(), "data:\n\ndata: 1\n\n");
        sender.send("data: 2\n\n").unwrap();
        assert_eq!(frames.next().await.unwrap().unwrap(), "data: 2\n\n");
    }
}
