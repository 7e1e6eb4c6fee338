//! Operations on the objects of any resource: the one path that every kind takes.
//!
//! [`table`] says what is served. [`read`] answers from the watch cache. A write goes through [`create`],
//! [`update`] (which patches share) or [`delete`]; each decodes nothing itself: bodies come in through [`decode`].
//! Parts of the server that need objects themselves (RBAC, admission, bootstrap, reconcilers) use the
//! methods here, which take the same path under the server's own identity.

pub mod create;
pub mod decode;
pub mod delete;
pub mod managed;
pub mod meta;
pub mod read;
pub mod table;
pub mod update;
pub mod versions;
pub mod yaml;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use apimachinery::resource::GroupResource;
use apimachinery::status::{Result, Status};
use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde_json::Value;
use storage::Store;

use crate::admission::{Attributes, Chain, Operation};
use crate::authn::UserInfo;
use crate::cache::{Object, Selection, WatchCache};
use table::{Served, Table};

/// What a write answers: the object as it is now stored.
#[derive(Debug, Clone)]
pub struct Written {
    pub object: Arc<Object>,
    /// Whether this write made the object.
    pub created: bool,
}

/// Who writes, and how.
#[derive(Debug)]
pub struct Call<'a> {
    pub user: &'a UserInfo,
    /// The options as sent, for admission.
    pub options: &'a Value,
    pub dry_run: bool,
    /// The name under which changed fields are owned.
    pub manager: Cow<'a, str>,
    /// Collected for `Warning` headers.
    pub warnings: Vec<String>,
}

impl<'a> Call<'a> {
    #[must_use]
    pub fn by(user: &'a UserInfo) -> Self {
        Self {
            user,
            options: &Value::Null,
            dry_run: false,
            manager: Cow::Borrowed("kube-apiserver"),
            warnings: Vec::new(),
        }
    }
}

/// Which object: a served resource, a namespace (empty for cluster scope) and a name (empty before generation).
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub served: &'a Arc<Served>,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Target<'a> {
    #[must_use]
    pub fn new(served: &'a Arc<Served>, namespace: &'a str, name: &'a str) -> Self {
        Self {
            served,
            subresource: "",
            namespace,
            name,
        }
    }

    #[must_use]
    pub fn subresource(self, subresource: &'a str) -> Self {
        Self {
            subresource,
            ..self
        }
    }

    /// The key below the resource, as the watch cache has it.
    #[must_use]
    pub fn cache_key(&self) -> String {
        match self.namespace {
            "" => self.name.to_owned(),
            namespace => format!("{namespace}/{}", self.name),
        }
    }

    #[must_use]
    pub fn storage_key(&self) -> String {
        format!("{}{}", self.served.storage.prefix, self.cache_key())
    }

    #[must_use]
    pub fn group_resource(&self) -> GroupResource {
        self.served.resource.group_resource()
    }

    #[must_use]
    pub fn not_found(&self) -> Status {
        Status::not_found(&self.group_resource(), self.name)
    }

    fn context<'b>(&self, user: &'b UserInfo) -> crate::strategy::Context<'b>
    where
        'a: 'b,
    {
        crate::strategy::Context {
            resource: &self.served.resource,
            subresource: self.subresource,
            namespace: self.namespace,
            user: Some(user),
        }
    }
}

/// Something that a write of some kind has to do elsewhere before it commits, such as taking an address. Undone when
/// the write fails, made final when it succeeds.
pub trait Reserver: Send + Sync {
    fn handles(&self, served: &Served) -> bool;

    /// Before an update is checked: keeps what was given and is left out now.
    fn inherit(&self, object: &mut Value, old: &Value);

    /// May change the object. `old` is `Null` for a create.
    fn reserve<'a>(
        &'a self,
        registry: &'a Registry,
        object: &'a mut Value,
        old: &'a Value,
        dry_run: bool,
    ) -> futures::future::BoxFuture<'a, Result<Box<dyn Reservation>>>;

    /// After the object is gone.
    fn released<'a>(
        &'a self,
        registry: &'a Registry,
        object: &'a Value,
    ) -> futures::future::BoxFuture<'a, ()>;
}

/// What a [`Reserver`] took. Exactly one of the two is called.
pub trait Reservation: Send {
    fn commit<'a>(self: Box<Self>, registry: &'a Registry) -> futures::future::BoxFuture<'a, ()>;
    fn rollback<'a>(self: Box<Self>, registry: &'a Registry) -> futures::future::BoxFuture<'a, ()>;
}

/// All objects of all resources.
pub struct Registry {
    pub store: Arc<dyn Store>,
    table: ArcSwap<Table>,
    admission: OnceLock<Chain>,
    reservers: OnceLock<Vec<Box<dyn Reserver>>>,
    event_ttl: Duration,
    this: Weak<Registry>,
}

impl Registry {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, table: Table, event_ttl: Duration) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            store,
            table: ArcSwap::from_pointee(table),
            admission: OnceLock::new(),
            reservers: OnceLock::new(),
            event_ttl,
            this: this.clone(),
        })
    }

    /// For whoever outlives a borrow, but must not keep the registry alive.
    #[must_use]
    pub fn this(&self) -> Weak<Self> {
        self.this.clone()
    }

    /// Sets the admission plugins and reservers, once, before serving: they may hold the registry themselves.
    pub fn assemble(&self, admission: Chain, reservers: Vec<Box<dyn Reserver>>) {
        let fresh = self.admission.set(admission).is_ok() && self.reservers.set(reservers).is_ok();
        debug_assert!(fresh, "a registry is assembled once");
    }

    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Serves these custom resources from now on, in place of those there were.
    pub fn set_custom(&self, custom: Vec<Arc<Served>>) {
        self.table.rcu(|table| table.with_custom(custom.clone()));
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Served>> {
        self.table.load().find(group, version, plural).cloned()
    }

    /// A resource in its stored version.
    pub fn resource(&self, group: &str, plural: &str) -> Result<Arc<Served>> {
        self.table
            .load()
            .stored(group, plural)
            .cloned()
            .ok_or_else(Status::unknown_path)
    }

    pub fn cache<'a>(&self, served: &'a Served) -> &'a Arc<WatchCache> {
        served.storage.cache(&self.store)
    }

    /// The watch cache of a resource, for whoever derives something from all its objects.
    pub fn cache_of(&self, group: &str, plural: &str) -> Result<Arc<WatchCache>> {
        Ok(self.cache(&*self.resource(group, plural)?).clone())
    }

    /// One object in its stored version, as it is now.
    pub async fn get(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Object>> {
        let served = self.resource(group, plural)?;
        let target = Target::new(&served, namespace, name);
        let cache = self.cache(&served);
        cache.fresh().await?;
        cache
            .get(&target.cache_key())
            .ok_or_else(|| target.not_found())
    }

    /// All selected objects in their stored version, as they are now.
    pub async fn list(
        &self,
        group: &str,
        plural: &str,
        selection: &Selection,
    ) -> Result<Vec<Arc<Object>>> {
        let cache = self.cache_of(group, plural)?;
        let reached = cache.fresh().await?;
        Ok(cache.list(selection, reached).objects)
    }

    /// Creates an object as the API server itself.
    pub async fn create_as_server(
        &self,
        group: &str,
        plural: &str,
        object: Value,
    ) -> Result<Arc<Object>> {
        let served = self.resource(group, plural)?;
        let user = UserInfo::apiserver();
        let namespace = apimachinery::object::namespace(&object).to_owned();
        let name = apimachinery::object::name(&object).to_owned();
        let target = Target::new(&served, &namespace, &name);
        let object = decode::complete(&served, object);
        Ok(self
            .create(target, object, &mut Call::by(&user))
            .await?
            .object)
    }

    /// Changes an object as the API server itself; `change` may run more than once. An error of it is returned.
    pub async fn update_as_server(
        &self,
        group: &str,
        plural: &str,
        key: (&str, &str),
        change: impl FnMut(&mut Value) -> Result<()> + Send,
    ) -> Result<Arc<Object>> {
        self.edit_as_server((group, plural), "", key, change).await
    }

    /// The same for the status.
    pub async fn update_status_as_server(
        &self,
        group: &str,
        plural: &str,
        key: (&str, &str),
        change: impl FnMut(&mut Value) -> Result<()> + Send,
    ) -> Result<Arc<Object>> {
        self.edit_as_server((group, plural), "status", key, change)
            .await
    }

    async fn edit_as_server(
        &self,
        (group, plural): (&str, &str),
        subresource: &str,
        (namespace, name): (&str, &str),
        change: impl FnMut(&mut Value) -> Result<()> + Send,
    ) -> Result<Arc<Object>> {
        let served = self.resource(group, plural)?;
        let user = UserInfo::apiserver();
        let target = Target::new(&served, namespace, name).subresource(subresource);
        let mut change = change;
        let edit = move |old: &Value| {
            let mut object = old.clone();
            change(&mut object)?;
            Ok(object)
        };
        Ok(self
            .update(target, &mut Call::by(&user), edit)
            .await?
            .object)
    }

    /// Deletes an object as the API server itself. Absent is done.
    pub async fn delete_as_server(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<()> {
        let served = self.resource(group, plural)?;
        let user = UserInfo::apiserver();
        let target = Target::new(&served, namespace, name);
        match self
            .delete(
                target,
                &mut Call::by(&user),
                &delete::DeleteOptions::default(),
            )
            .await
        {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn now() -> Timestamp {
        Timestamp::now()
    }

    /// How long an object of this kind is kept: only events end by themselves.
    fn ttl(&self, served: &Served) -> Option<Duration> {
        (served.storage.resource.plural == "events").then_some(self.event_ttl)
    }

    /// The mutating phase; whether it may have changed the object.
    async fn admit(
        &self,
        operation: Operation,
        target: Target<'_>,
        call: &mut Call<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<bool> {
        let Some(chain) = self.admission.get() else {
            return Ok(false);
        };
        let mut attributes = attributes(operation, target, call, object, old);
        chain.admit(&mut attributes, self).await?;
        Ok(attributes.touched)
    }

    async fn validate_admission(
        &self,
        operation: Operation,
        target: Target<'_>,
        call: &mut Call<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<()> {
        let Some(chain) = self.admission.get() else {
            return Ok(());
        };
        let attributes = attributes(operation, target, call, object, old);
        chain.validate(&attributes, self).await
    }

    /// Both phases for a connection to a subresource (exec, proxy, ...): `object` holds its options.
    pub async fn admit_connect(
        &self,
        target: Target<'_>,
        call: &mut Call<'_>,
        object: &mut Value,
    ) -> Result<()> {
        self.admit(Operation::Connect, target, call, object, &Value::Null)
            .await?;
        self.validate_admission(Operation::Connect, target, call, object, &Value::Null)
            .await
    }

    /// Admission of what is created below an object and not stored: a Binding, an Eviction, a TokenRequest.
    pub async fn admit_below(
        &self,
        target: Target<'_>,
        call: &mut Call<'_>,
        object: &mut Value,
    ) -> Result<()> {
        self.admit(Operation::Create, target, call, object, &Value::Null)
            .await?;
        self.validate_admission(Operation::Create, target, call, object, &Value::Null)
            .await
    }

    fn reserver(&self, served: &Served) -> Option<&dyn Reserver> {
        self.reservers
            .get()?
            .iter()
            .find(|reserver| reserver.handles(served))
            .map(|reserver| &**reserver)
    }
}

fn attributes<'a>(
    operation: Operation,
    target: Target<'a>,
    call: &'a mut Call<'_>,
    object: &'a mut Value,
    old: &'a Value,
) -> Attributes<'a> {
    Attributes {
        operation,
        resource: &target.served.resource,
        subresource: target.subresource,
        namespace: target.namespace,
        name: target.name,
        user: call.user,
        object,
        old,
        options: call.options,
        dry_run: call.dry_run,
        warnings: parking_lot::Mutex::new(&mut call.warnings),
        reinvocation: Default::default(),
        touched: false,
    }
}
