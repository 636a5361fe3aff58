/**
 * What noid remembers, in SQLite (node:sqlite, synchronous: a function that calls several of these without awaiting is
 * atomic for the whole daemon).
 *
 * The rule that makes kill -9 harmless: what must be repaired is written BEFORE it is done. A VM's `phase` says what was
 * being done to it; reconcile.ts reads it and finishes or undoes.
 * Durability: WAL with synchronous=NORMAL: every commit survives the death of the daemon; a power cut may lose the last
 * ones but never corrupts, and no VM survives a power cut either.
 * A full disk: what changes or removes a row is tried once more with the reserve's room (reserve.ts), because that is how VMs are taken down; what adds
 * rows is not, and neither is a transaction. What cannot be written is DISK_FULL, and nothing of it was.
 * Never does: deciding anything about VMs or networks.
 */
import { mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { DatabaseSync, type SQLInputValue } from 'node:sqlite'
import { NoidError } from '../errors.ts'
import type { Attachment, LeaseRow } from '../plugins/contract.ts'
import type { MountSpec, VmHandle } from '../runtimes/contract.ts'
import type { Reserve } from './reserve.ts'

/** One entry for each version of the schema; entry i leads from version i to i + 1. Never edited once released. */
const MIGRATIONS: readonly string[] = [
  `CREATE TABLE networks (
     id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, backend TEXT NOT NULL, phase TEXT NOT NULL, subnet TEXT NOT NULL,
     domain TEXT NOT NULL, mtu INTEGER NOT NULL, isolated INTEGER NOT NULL, on_demand INTEGER NOT NULL,
     allow_host TEXT NOT NULL, config TEXT NOT NULL, notes TEXT NOT NULL, created_at TEXT NOT NULL) STRICT;
   CREATE TABLE vms (
     id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, phase TEXT NOT NULL, problem TEXT, runtime TEXT NOT NULL,
     network TEXT NOT NULL REFERENCES networks(id), address TEXT, mac TEXT NOT NULL UNIQUE, cpus INTEGER NOT NULL,
     mem_mib INTEGER NOT NULL, image TEXT, handle TEXT, boot_id TEXT, created_at TEXT NOT NULL, started_at TEXT, netns TEXT,
     ifname TEXT, attached_as TEXT) STRICT;
   CREATE UNIQUE INDEX vm_address ON vms(network, address);
   CREATE UNIQUE INDEX vm_attached ON vms(attached_as);
   CREATE TABLE attachments (
     id TEXT PRIMARY KEY, vm TEXT NOT NULL UNIQUE REFERENCES vms(id) ON DELETE CASCADE, body TEXT) STRICT;
   CREATE TABLE publishes (
     id TEXT PRIMARY KEY, vm TEXT NOT NULL REFERENCES vms(id) ON DELETE CASCADE, proto TEXT NOT NULL,
     host_address TEXT NOT NULL, host_port INTEGER NOT NULL, picked INTEGER NOT NULL, guest_port INTEGER NOT NULL) STRICT;
   CREATE INDEX publish_port ON publishes(proto, host_port);
   CREATE TABLE leases (
     attachment TEXT PRIMARY KEY REFERENCES attachments(id) ON DELETE CASCADE, address TEXT NOT NULL, state TEXT NOT NULL,
     expires_at INTEGER) STRICT;`,
  `ALTER TABLE vms ADD COLUMN mounts TEXT NOT NULL DEFAULT '[]';
   ALTER TABLE vms ADD COLUMN restart TEXT NOT NULL DEFAULT 'no';
   ALTER TABLE vms ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;
   ALTER TABLE vms ADD COLUMN restart_at TEXT;`,
  // IPv6. What was made before stays IPv4-only until it is made anew: nothing changes below a VM that runs.
  `CREATE TABLE installation (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
   ALTER TABLE networks ADD COLUMN subnet6 TEXT;
   ALTER TABLE networks ADD COLUMN ipv4 INTEGER NOT NULL DEFAULT 1;
   ALTER TABLE vms ADD COLUMN address6 TEXT;
   CREATE UNIQUE INDEX vm_address6 ON vms(network, address6);
   CREATE TABLE leases_of_families (
     attachment TEXT NOT NULL REFERENCES attachments(id) ON DELETE CASCADE, family INTEGER NOT NULL, address TEXT NOT NULL,
     state TEXT NOT NULL, expires_at INTEGER, PRIMARY KEY (attachment, family)) STRICT;
   INSERT INTO leases_of_families SELECT attachment, 4, address, state, expires_at FROM leases;
   DROP TABLE leases;
   ALTER TABLE leases_of_families RENAME TO leases;`,
]
export const SCHEMA_VERSION = MIGRATIONS.length

/** What is being done to a VM, or was when the daemon died. */
export type Phase = 'creating' | 'created' | 'starting' | 'running' | 'stopping' | 'stopped' | 'failed' | 'destroying'

export interface NetworkRecord {
  readonly id: string
  readonly name: string
  readonly backend: string
  readonly phase: 'creating' | 'ready' | 'deleting'
  readonly subnet: string
  /** null: an IPv4-only network. */
  readonly subnet6: string | null
  /** False: an IPv6-only network; its subnet is not used. */
  readonly ipv4: boolean
  readonly domain: string
  readonly mtu: number
  readonly isolated: boolean
  /** Made by `create` on first use: removed with its last VM. */
  readonly onDemand: boolean
  readonly allowHost: readonly number[]
  /** What the backend's parseConfig returned. */
  readonly config: unknown
  /** What a person should know of it, such as an unusual subnet. */
  readonly notes: readonly string[]
  readonly createdAt: string
}

export interface VmRecord {
  readonly id: string
  readonly name: string
  readonly phase: Phase
  readonly problem: string | null
  readonly runtime: string
  readonly network: string
  readonly address: string | null
  readonly address6: string | null
  readonly mac: string
  readonly cpus: number
  readonly memMib: number
  readonly image: string | null
  /** The namespace of somebody else's that it is, and that one's id for it (foreign.ts); null for noid's own VMs. */
  readonly netns: string | null
  readonly ifname: string | null
  readonly attachedAs: string | null
  readonly handle: VmHandle | null
  /** The boot in which the handle is valid. */
  readonly bootId: string | null
  readonly createdAt: string
  readonly startedAt: string | null
  /** Directories of the host that it sees. */
  readonly mounts: readonly MountSpec[]
  /** What happens when it ends on its own: "no", "on-failure", "on-failure:5", "always" (restarts.ts). */
  readonly restart: string
  /** How often it was started again on its own since somebody started it, or since it ran for a while. */
  readonly restarts: number
  /** When it will be started again on its own; null for what is not planned. */
  readonly restartAt: string | null
}

export interface PublishRecord {
  readonly id: string
  readonly vm: string
  readonly proto: 'tcp' | 'udp'
  readonly hostAddress: string
  /** 0 until one was picked. */
  readonly hostPort: number
  /** It was asked for as 0: another one will do when this one is busy. */
  readonly picked: boolean
  readonly guestPort: number
}

export interface LeaseRecord {
  readonly attachment: string
  readonly family: 4 | 6
  readonly address: string
  readonly state: LeaseRow['state']
  readonly expiresAt: number | null
}

type Row = Record<string, unknown>

/** Columns that are JSON or truth values in SQLite; everything else is as it is. */
const JSON_COLUMNS = new Set(['allow_host', 'config', 'notes', 'handle', 'body', 'mounts'])
const BOOLEAN_COLUMNS = new Set(['isolated', 'on_demand', 'picked', 'ipv4'])
const snake = (s: string): string => s.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`)
const camel = (s: string): string => s.replace(/_([a-z])/g, (_, c: string) => c.toUpperCase())

function encode(column: string, value: unknown): SQLInputValue {
  if (value === null || value === undefined) return null
  if (JSON_COLUMNS.has(column)) return JSON.stringify(value)
  if (BOOLEAN_COLUMNS.has(column)) return value ? 1 : 0
  return value as SQLInputValue
}

function decode<T>(row: Row): T {
  const out: Row = {}
  for (const [column, value] of Object.entries(row)) {
    out[camel(column)] =
      value !== null && JSON_COLUMNS.has(column)
        ? JSON.parse(value as string)
        : BOOLEAN_COLUMNS.has(column)
          ? value === 1
          : value
  }
  return out as T
}

type Table = 'installation' | 'networks' | 'vms' | 'attachments' | 'publishes' | 'leases'

/** https://sqlite.org/rescode.html: SQLITE_FULL; SQLITE_IOERR_WRITE and _SHMSIZE, which a quota or a growing index of the log ends in. */
const NO_ROOM: ReadonlySet<unknown> = new Set([13, 778, 4874])

export class Store {
  readonly #db: DatabaseSync
  readonly #dir: string
  readonly #reserve: Reserve | undefined

  /** Opens or makes the store. Throws when a newer noid wrote it: going back is not repaired by guessing. */
  constructor(file: string, reserve?: Reserve) {
    this.#dir = dirname(file)
    this.#reserve = reserve
    if (file !== ':memory:') mkdirSync(dirname(file), { recursive: true, mode: 0o700 })
    try {
      this.#db = new DatabaseSync(file)
      this.#db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON')
    } catch (e) {
      throw new Error(`${file} cannot be used: ${(e as Error).message}`)
    }
    this.#migrate(file)
  }

  #migrate(file: string): void {
    const { user_version: from } = this.#db.prepare('PRAGMA user_version').get() as { user_version: number }
    if (from > SCHEMA_VERSION) {
      this.#db.close()
      throw new Error(
        `${file} was written by a newer noid (schema ${from}, this one knows ${SCHEMA_VERSION}): use that one`,
      )
    }
    for (let v = from; v < SCHEMA_VERSION; v++) {
      this.transaction(() => this.#db.exec(`${MIGRATIONS[v]}; PRAGMA user_version = ${v + 1}`))
    }
  }

  close(): void {
    this.#db.close()
  }

  transaction<T>(fn: () => T): T {
    this.#db.exec('BEGIN IMMEDIATE')
    try {
      const result = fn()
      this.#db.exec('COMMIT')
      return result
    } catch (e) {
      // SQLite has done it already where there was no room.
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK')
      throw this.#told(e)
    }
  }

  /** Also on a disk that is full, as long as there is a reserve. */
  #urgent(sql: string, ...values: SQLInputValue[]): void {
    const write = (): unknown => this.#db.prepare(sql).run(...values)
    const alone = !this.#db.isTransaction
    try {
      write()
    } catch (e) {
      if (!alone || !noRoom(e) || !this.#reserve?.spend()) throw this.#told(e)
      try {
        write()
      } catch (f) {
        throw this.#told(f)
      }
    }
  }

  #told(e: unknown): unknown {
    return noRoom(e) ? new NoidError('DISK_FULL', { dir: this.#dir, why: (e as Error).message }, { cause: e }) : e
  }

  #insert(table: Table, record: object, orReplace = false): void {
    const entries = Object.entries(record).map(([k, v]) => [snake(k), v] as const)
    try {
      this.#db
        .prepare(
          `INSERT ${orReplace ? 'OR REPLACE' : ''} INTO ${table} (${entries.map(([c]) => c).join(', ')})
         VALUES (${entries.map(() => '?').join(', ')})`,
        )
        .run(...entries.map(([c, v]) => encode(c, v)))
    } catch (e) {
      throw this.#told(e)
    }
  }

  #update(table: Table, id: string, change: object): void {
    const entries = Object.entries(change).map(([k, v]) => [snake(k), v] as const)
    const set = entries.map(([c]) => `${c} = ?`).join(', ')
    this.#urgent(`UPDATE ${table} SET ${set} WHERE id = ?`, ...entries.map(([c, v]) => encode(c, v)), id)
  }

  #all<T>(sql: string, ...values: SQLInputValue[]): T[] {
    return this.#db
      .prepare(sql)
      .all(...values)
      .map((r) => decode<T>(r as Row))
  }

  #one<T>(sql: string, ...values: SQLInputValue[]): T | undefined {
    const row = this.#db.prepare(sql).get(...values)
    return row === undefined ? undefined : decode<T>(row as Row)
  }

  /** A value of this installation's own, made on first use and the same for ever after. */
  installation(key: string, make: () => string): string {
    const kept = this.#one<{ value: string }>('SELECT value FROM installation WHERE key = ?', key)
    if (kept !== undefined) return kept.value
    const value = make()
    this.#insert('installation', { key, value })
    return value
  }

  // -- networks --------------------------------------------------------------------------------------------------------
  networks = (): NetworkRecord[] => this.#all('SELECT * FROM networks ORDER BY created_at, name')
  network = (id: string): NetworkRecord => {
    const n = this.#one<NetworkRecord>('SELECT * FROM networks WHERE id = ?', id)
    if (n === undefined) throw new Error(`the store has no network ${id}`)
    return n
  }
  networkNamed = (name: string): NetworkRecord | undefined => this.#one('SELECT * FROM networks WHERE name = ?', name)
  addNetwork = (n: NetworkRecord): void => this.#insert('networks', n)
  updateNetwork = (id: string, change: Partial<NetworkRecord>): void => this.#update('networks', id, change)
  removeNetwork = (id: string): void => {
    this.#urgent('DELETE FROM networks WHERE id = ?', id)
  }

  // -- VMs -------------------------------------------------------------------------------------------------------------
  vms = (): VmRecord[] => this.#all('SELECT * FROM vms ORDER BY created_at, name')
  vmsOn = (network: string): VmRecord[] => this.#all('SELECT * FROM vms WHERE network = ? ORDER BY name', network)
  vm = (id: string): VmRecord | undefined => this.#one('SELECT * FROM vms WHERE id = ?', id)
  vmNamed = (name: string): VmRecord | undefined => this.#one('SELECT * FROM vms WHERE name = ?', name)
  vmWithMac = (mac: string): VmRecord | undefined => this.#one('SELECT * FROM vms WHERE mac = ?', mac)
  vmAttachedAs = (id: string): VmRecord | undefined => this.#one('SELECT * FROM vms WHERE attached_as = ?', id)
  countVms = (): number => (this.#db.prepare('SELECT count(*) AS n FROM vms').get() as { n: number }).n
  /** The VM with its attachment, which has the VM's id: one nic for each VM. */
  addVm = (v: VmRecord): void => {
    this.#insert('vms', v)
    this.#insert('attachments', { id: v.id, vm: v.id, body: null })
  }
  updateVm = (id: string, change: Partial<VmRecord>): void => this.#update('vms', id, change)
  /** With everything that hangs on it. */
  removeVm = (id: string): void => {
    this.#urgent('DELETE FROM vms WHERE id = ?', id)
  }

  // -- what hangs on a VM ------------------------------------------------------------------------------------------------
  attachment = (id: string): Attachment | undefined =>
    this.#one<{ body: Attachment | null }>('SELECT body FROM attachments WHERE id = ?', id)?.body ?? undefined
  setAttachment = (id: string, body: Attachment | undefined): void => this.#update('attachments', id, { body })

  publishesAt = (proto: string, hostPort: number): PublishRecord[] =>
    this.#all('SELECT * FROM publishes WHERE proto = ? AND host_port = ?', proto, hostPort)
  publishesOf = (vm: string): PublishRecord[] =>
    this.#all('SELECT * FROM publishes WHERE vm = ? ORDER BY proto, host_port, guest_port', vm)
  addPublish = (p: PublishRecord): void => this.#insert('publishes', p)
  updatePublish = (id: string, change: Partial<PublishRecord>): void => this.#update('publishes', id, change)
  removePublish = (id: string): void => {
    this.#urgent('DELETE FROM publishes WHERE id = ?', id)
  }

  lease = (attachment: string, family: 4 | 6 = 4): LeaseRecord | undefined =>
    this.#one('SELECT * FROM leases WHERE attachment = ? AND family = ?', attachment, family)
  /** A lease of an attachment that is gone already is forgotten silently. */
  setLease = (l: Omit<LeaseRecord, 'family'>): void => {
    if (this.#db.prepare('SELECT 1 FROM attachments WHERE id = ?').get(l.attachment) !== undefined)
      this.#insert('leases', { ...l, family: l.address.includes(':') ? 6 : 4 }, true)
  }
}

const noRoom = (e: unknown): boolean => NO_ROOM.has((e as { errcode?: unknown } | null)?.errcode)

/** Is it that there is no room to write it down? */
export const isDiskFull = (e: unknown): boolean => e instanceof NoidError && e.code === 'DISK_FULL'
