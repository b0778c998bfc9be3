//! The thread that computes: one scheduler for each model, whose steps take turns. Nothing else touches the models.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, TryRecvError},
    },
};

use espalier_engine::scheduler::{Options, Request, Scheduler, Status};
use espalier_models::model::LanguageModel;

/// What the thread is asked for, with the number of the model.
pub(crate) enum Command {
    /// A text to be continued.
    Generate(usize, Box<Request>),
    /// Something else to be computed.
    Compute(usize, Box<dyn FnOnce(&LanguageModel) + Send>),
    /// The end, when all is done.
    Stop,
}

/// A model's figures, as others see them.
pub(crate) type SharedStatus = Arc<Mutex<Status>>;

/// A model of the thread.
pub(crate) struct Hosted {
    pub model: LanguageModel,
    pub options: Options,
    /// Nothing of a model that does not generate.
    pub scheduler: Option<Scheduler>,
    pub status: SharedStatus,
}

impl Hosted {
    pub fn new(model: LanguageModel, options: Options) -> Self {
        Self {
            scheduler: Scheduler::new(model.clone(), options.clone()).ok(),
            model,
            options,
            status: SharedStatus::default(),
        }
    }

    /// A step; whether there is more to do. A bug in it ends the requests, and not the server.
    fn step(&mut self) -> bool {
        let Some(scheduler) = &mut self.scheduler else {
            return false;
        };
        let more = catch_unwind(AssertUnwindSafe(|| scheduler.step()));
        let more = match more {
            Ok(more) => more,
            Err(_) => {
                // What a step left behind half done is not to be trusted.
                let abort = AssertUnwindSafe(|| {
                    scheduler.abort("an internal error ended this request; please report it");
                });
                let _ = catch_unwind(abort);
                self.scheduler = Scheduler::new(self.model.clone(), self.options.clone()).ok();
                false
            }
        };
        self.publish();
        more
    }

    fn publish(&self) {
        if let Some(scheduler) = &self.scheduler {
            let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            *status = scheduler.status();
        }
    }
}

/// Computes until it is told to stop.
pub(crate) fn run(models: &mut [Hosted], commands: &Receiver<Command>) {
    let mut busy = false;
    let mut stopping = false;
    loop {
        // Whoever has work looks what else came; whoever has none waits.
        loop {
            let next = match busy || stopping {
                true => commands.try_recv(),
                false => commands.recv().map_err(|_| TryRecvError::Disconnected),
            };
            match next {
                Ok(Command::Stop) => stopping = true,
                Ok(command) => {
                    busy = true;
                    obey(models, command);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    stopping = true;
                    break;
                }
            }
        }
        if stopping && !busy {
            return;
        }
        busy = false;
        for model in models.iter_mut() {
            busy |= model.step();
        }
    }
}

fn obey(models: &mut [Hosted], command: Command) {
    match command {
        Command::Generate(number, request) => {
            let hosted = models.get_mut(number);
            if let Some(scheduler) = hosted.and_then(|hosted| hosted.scheduler.as_mut()) {
                scheduler.submit(*request);
            }
        }
        Command::Compute(number, work) => {
            if let Some(hosted) = models.get(number) {
                // Who waits sees its channel closed where this fails.
                let _ = catch_unwind(AssertUnwindSafe(|| work(&hosted.model)));
            }
        }
        Command::Stop => {}
    }
}
