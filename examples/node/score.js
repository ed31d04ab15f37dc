// How well does each text fit an image?
//
//   npm install
//   node score.js 127.0.0.1:50051 cat.jpg "a cat on a sofa" "a dog in the rain"
//
// The protos are loaded as they are. Retries, balancing and health checks come from the service config.
'use strict';

const fs = require('fs');
const path = require('path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const protos = process.env.SIGHTLINE_PROTOS || path.join(__dirname, '..', '..', 'protos');
const definition = loader.loadSync('sightline_scorer/v1/scorer.proto', {
  includeDirs: [protos], keepCase: true, longs: Number, enums: String, bytes: Buffer, defaults: true, oneofs: true,
});
const { ScorerService } = grpc.loadPackageDefinition(definition).sightline_scorer.v1;

const serviceConfig = JSON.stringify({
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [{
    name: [{ service: 'sightline_scorer.v1.ScorerService', method: 'Score' }],
    retryPolicy: {
      maxAttempts: 5, initialBackoff: '0.2s', maxBackoff: '5s', backoffMultiplier: 2,
      retryableStatusCodes: ['UNAVAILABLE'],
    },
  }],
});

function score(target, image, texts) {
  const client = new ScorerService(target, grpc.credentials.createInsecure(), {
    'grpc.service_config': serviceConfig,
    'grpc.enable_http_proxy': 0,
    'grpc.max_send_message_length': 64 * 1024 * 1024,
  });
  const request = { image: { content: fs.readFileSync(image) }, texts };
  return new Promise((resolve, reject) => {
    client.Score(request, { deadline: Date.now() + 60_000 }, (error, response) => {
      client.close();
      error ? reject(error) : resolve(response);
    });
  });
}

const [target, image, ...texts] = process.argv.slice(2);
score(target, image, texts).then((response) => {
  const lines = response.scores.map((one, k) => ({ clip_score: one.clip_score, text: texts[k] }));
  lines.sort((a, b) => b.clip_score - a.clip_score);
  for (const line of lines) console.log(`${line.clip_score.toFixed(2).padStart(6)}  ${line.text}`);
}).catch((error) => {
  // error.code is the gRPC status; google.rpc.ErrorInfo and RetryInfo are in the metadata 'grpc-status-details-bin'.
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exit(1);
});
