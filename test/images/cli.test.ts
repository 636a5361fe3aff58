/** `noid image ...` through a daemon of its own: what people see, what scripts get, and what a daemon that is killed in the middle leaves. */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import type { Image } from '../../src/api/contract.ts'
import { Images } from '../../src/images/index.ts'
import { find } from '../../src/images/run.ts'
import { debianSkip, ownStore, sharedImages } from './shared.ts'

const BIN = fileURLToPath(new URL('../../bin/noid.mjs', import.meta.url))
const COMMAND_MS = 120_000
const skip = debianSkip() || (find('qemu-img') === undefined && 'needs qemu-img')

const home = mkdtempSync(join(tmpdir(), 'noid-image-cli-'))
const env = { ...process.env, NOID_HOME: home, NOID_IMAGES_DIR: join(home, 'images') }

interface Answer {
  readonly code: number | null
  readonly out: string
  readonly err: string
}

function noid(...args: string[]): Promise<Answer> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', BIN, ...args], {
      env,
      cwd: home,
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: COMMAND_MS,
    })
    let [out, err] = ['', '']
    child.stdout.setEncoding('utf8').on('data', (t: string) => (out += t))
    child.stderr.setEncoding('utf8').on('data', (t: string) => (err += t))
    child.on('close', (code) => resolve({ code, out, err }))
  })
}

async function json<T>(...args: string[]): Promise<T> {
  const r = await noid(...args, '--json')
  assert.equal(r.code, 0, r.err + r.out)
  return JSON.parse(r.out) as T
}

describe('noid image', { skip, timeout: 900_000 }, () => {
  before(async () => {
    await new Images(sharedImages(), () => {}).resolve('tiny')
    ownStore(env.NOID_IMAGES_DIR)
    execFileSync('/usr/sbin/mke2fs', ['-q', '-t', 'ext4', join(home, 'fs.raw'), '8m'])
  })
  after(async () => {
    await noid('daemon', 'stop')
    rmSync(home, { recursive: true, force: true })
  })

  test('list: the built-in ones, built or not', async () => {
    const { out } = await noid('image', 'list')
    assert.match(out, /^debian \(default\)\s+-\s+not built yet/m)
    assert.match(out, /^tiny\s+[0-9a-f]{12}\s/m)
    const list = await json<Image[]>('image', 'list')
    assert.deepEqual(
      list.map((i) => i.name),
      ['debian', 'tiny'],
    )
  })

  test('import, info and remove, with a relative path', async () => {
    const made = await noid('image', 'import', 'mine', '--disk', 'fs.raw', '--append', 'noid.root=/dev/vda')
    assert.equal(made.code, 0, made.err)
    assert.match(made.out, /mine is imported/)
    assert.match(made.out, /noid create NAME --runtime qemu --image mine/)
    assert.match(made.err, /copying the disk/)
    const info = await json<Image>('image', 'info', 'mine')
    assert.equal(info.diskBytes, 8 << 20)
    assert.match(info.append as string, /noid\.root=\/dev\/vda$/)
    assert.match((await noid('image', 'info', 'mine')).out, /^source:\s+imported$/m)
    assert.equal((await noid('image', 'import', 'mine', '--disk', 'fs.raw')).code, 2)
    assert.equal((await noid('image', 'remove', 'mine')).out, 'mine is removed\n')
    const gone = await noid('image', 'info', 'mine')
    assert.equal(gone.code, 1)
    assert.match(gone.err, /there is no image named "mine" \(IMAGE_UNKNOWN\)/)
  })

  test('build says when nothing is new', async () => {
    const r = await noid('image', 'build', 'tiny')
    assert.equal(r.code, 0, r.err)
    assert.match(r.out, /^tiny is (as it was|built): /)
    const wrong = await noid('image', 'build', 'nope')
    assert.equal(wrong.code, 1)
    assert.match(wrong.err, /IMAGE_UNKNOWN/)
  })

  test('an error has its code in --json', async () => {
    writeFileSync(join(home, 'text'), 'hello')
    const r = await noid('image', 'import', 'x', '--disk', 'text', '--json')
    assert.equal(r.code, 2)
    assert.match(r.out + r.err, /IMAGE_FILE_INVALID/)
  })

  test('a VM is shown by its name, and keeps its image from being removed', async () => {
    const vm = await json<{ id: string }>('create', 'web', '--no-start', '--runtime', 'sandbox')
    const images = new Images(env.NOID_IMAGES_DIR, () => {})
    images.hold({ id: vm.id, dir: join(home, 'state', 'vms', vm.id) }, await images.resolve('tiny'))
    assert.deepEqual((await json<Image>('image', 'info', 'tiny')).vms, ['web'])
    const r = await noid('image', 'remove', 'tiny')
    assert.equal(r.code, 1)
    assert.match(r.err, /is used by web \(IMAGE_IN_USE\)/)
    await json('destroy', 'web')
    assert.equal((await noid('image', 'remove', 'tiny')).code, 0)
  })
})
